/* Jobs of random phases on a team of threads.  An item runs once, and sees all items of the phase before it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "cpu/team.c"

enum { PHASES = 60, ITEMS = 40 };

static int length[PHASES], runs[PHASES][ITEMS];

static void check(int phase) {
    for (int i = 0; i < length[phase]; i++)
        if (runs[phase][i] != 1) {
            printf("item %d of phase %d ran %d times\n", i, phase, runs[phase][i]);
            exit(1);
        }
}

static idx items(const job *j, int phase) {
    (void)j;
    return length[phase];
}

static void run(const job *j, int phase, idx first, idx past, int me) {
    (void)j, (void)me;
    int before = phase - 1;
    while (before >= 0 && !length[before]) before--;
    if (before >= 0) check(before);
    for (idx i = first; i < past; i++) runs[phase][i]++;
    for (volatile int wait = 0; wait < 37 * phase % 300; wait++) continue;
}

static stretch soon(const job *j, int phase, int team, int me) {
    (void)j, (void)phase, (void)team, (void)me;
    return (stretch){(const char *)runs, 128};
}

int main(int count, char **arguments) {
    int rounds = count > 1 ? atoi(arguments[1]) : 1000;
    for (int round = 0; round < rounds; round++) {
        memset(runs, 0, sizeof runs);
        for (int p = 0; p < PHASES; p++) length[p] = rand() % 3 ? rand() % 4 : rand() % ITEMS;
        job *j = malloc(sizeof *j);
        *j = (job){rand() % PHASES + 1, items, run, soon};
        team_run(j, rand() % 5 + 1);
        for (int p = 0; p < j->phases; p++) check(p);
        free(j);                                   /* no thread may look at it any more */
        if (round % 64 == 0) nanosleep(&(struct timespec){0, 500000}, NULL);        /* the helpers fall asleep */
    }
    return 0;
}
