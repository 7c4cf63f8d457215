/* Threads that share a job of many short phases: see team.c. */
#pragma once
#include "../kernels.h"

typedef struct {
    const char *at;
    idx bytes;
} stretch;

typedef struct job {
    int phases;
    idx (*items)(const struct job *j, int phase);  /* 0: the phase is left out */
    void (*run)(const struct job *j, int phase, idx first, idx past, int me);
    /* The memory that thread `me` of a team will probably read first after this phase. */
    stretch (*soon)(const struct job *j, int phase, int team, int me);
} job;

/* Runs all items of a phase before the first of the next, on at most `threads` threads, of which this
 * is number 0.  The caller may not rely on the others: an item may run on any. */
void team_run(const job *j, int threads);
