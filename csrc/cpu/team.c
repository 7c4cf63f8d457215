/* Threads for jobs of many phases of a few microseconds, such as a token's way through a decoder.
 *
 * (a) Helpers are welcome, not awaited.  Whoever is awake claims pieces of a phase; one that sleeps, or
 *     whose core another program has, is missed only if it holds a piece.  OpenMP would wait for all
 *     of its threads at every barrier, and for the slowest to wake.
 * (b) A thread first claims the pieces of its own share, the same at each token, so that a small model
 *     stays in the caches of the cores; then those of the others.
 * (c) A ticket is a word: the number of the phase, of the threads that may claim, and of the pieces left
 *     in a share.  So a claim cannot fall into another phase, and what a job needs to know is only
 *     read by those who hold a piece of it.
 * (d) Who finishes the last piece opens the next phase, and holds the first piece of its own share of
 *     it.  A phase of one item it runs by itself.
 * (f) What another core has written takes longer to arrive (some 150 ns) than many pieces to run.  So
 *     a phase is opened by one word for each thread; a thread that waits looks at its own, and now and
 *     then at the others'; and it looks by an addition, which makes the word its core's for the claim.
 * (e) A helper without work keeps looking for a while, because the next token comes soon, then sleeps.
 *     It does not while a job runs that it has a share of: it would miss the rest of a long prompt.
 */
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <time.h>
#include "team.h"

enum { MOST = 128, PIECES = 4, GLANCES = 64, OTHERS = 32, PATIENCE = 400 };
static const double AWAKE = 300e-6;                /* seconds */

typedef struct {
    uint64_t ticket __attribute__((aligned(64)));
} share;

static struct {
    pthread_mutex_t busy, lock;
    pthread_cond_t more;
    int helpers, sleepers;
    unsigned jobs;                                 /* so far */
    const job *now;                                /* this and the next two: of those who hold a piece */
    int team;
    uint32_t first, past;                          /* its first and its last phase, over all jobs */
    share of[MOST];
    idx left __attribute__((aligned(64)));         /* pieces of the phase that are not finished */
    int ended __attribute__((aligned(64)));
} pool = {.busy = PTHREAD_MUTEX_INITIALIZER, .lock = PTHREAD_MUTEX_INITIALIZER, .more = PTHREAD_COND_INITIALIZER};

static inline void rest_a_little(void) {
#if defined __x86_64__
    __builtin_ia32_pause();
#elif defined __aarch64__
    __asm__ volatile("yield");
#endif
}

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

typedef struct {
    idx first, past, size;                         /* items, and how many are a piece */
} range;

static range share_of_items(idx items, int t) {
    range r = {items * t / pool.team, items * (t + 1) / pool.team, 1};
    r.size = (r.past - r.first + PIECES - 1) / PIECES;
    return r;
}

static idx pieces(range r) { return r.size ? (r.past - r.first + r.size - 1) / r.size : 0; }

static uint64_t ticket(uint32_t number, int team, idx left) {
    return (uint64_t)number << 32 | (uint64_t)team << 24 | (uint64_t)left;
}

static uint32_t number_of(uint64_t ticket) { return ticket >> 32; }
static int team_of(uint64_t ticket) { return ticket >> 24 & 0xff; }
static idx left_in(uint64_t ticket) { return ticket & 0xffffff; }

typedef struct {                                   /* a phase of which a thread has run pieces, unreported */
    int phase;
    idx items, pieces;
} held;

static void run_number(idx number, range r, held *h, int me) {
    idx first = r.first + number * r.size, past = first + r.size;
    h->pieces++;
    pool.now->run(pool.now, h->phase, first, past < r.past ? past : r.past, me);
}

/* Opens the phase after this one that has several items; past the last one, the job has ended.  If this
 * thread claims a piece of its own share, it runs it. */
static void open_next(held *h, int claims, int me) {
    const job *j = pool.now;
    idx items = 0, all = 0;
    int phase = h->phase, team = pool.team;
    while (++phase < j->phases && (items = j->items(j, phase)) <= 1)
        if (items) j->run(j, phase, 0, 1, me);
    if (phase == j->phases) {
        __atomic_store_n(&pool.ended, 1, __ATOMIC_RELEASE);
        return;
    }
    uint64_t tickets[MOST];
    range own = share_of_items(items, me);
    claims = claims && pieces(own);
    for (int t = 0; t < team; t++) {
        idx count = pieces(share_of_items(items, t));
        all += count;
        tickets[t] = ticket(pool.first + phase, team, count - (claims && t == me));
    }
    __atomic_store_n(&pool.left, all, __ATOMIC_RELAXED);
    for (int t = 0; t < team; t++) __atomic_store_n(&pool.of[t].ticket, tickets[t], __ATOMIC_RELEASE);
    *h = (held){phase, items, 0};
    if (claims) run_number(0, own, h, me);
}

/* Runs a piece of share t, if it has one that thread `me` may claim. */
static int run_piece(int t, held *h, int me) {
    uint64_t *at = &pool.of[t].ticket;
    uint64_t seen = t == me ? __atomic_fetch_add(at, 0, __ATOMIC_RELAXED) : __atomic_load_n(at, __ATOMIC_RELAXED);
    do
        if (!left_in(seen) || me >= team_of(seen)) return 0;
    while (!__atomic_compare_exchange_n(at, &seen, seen - 1, 1, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED));
    if (!h->pieces) {
        h->phase = number_of(seen) - pool.first;
        h->items = pool.now->items(pool.now, h->phase);
    }
    range r = share_of_items(h->items, t);
    run_number(pieces(r) - left_in(seen), r, h, me);
    return 1;
}

static void request(stretch memory) {
    for (idx i = 0; i < memory.bytes; i += 64) __builtin_prefetch(memory.at + i);
}

/* Reports the pieces: from here on no phase waits for this thread, unless it opened one.  A thread that has
 * to wait requests what it will read after that. */
static void report(held *h, int me) {
    idx pieces = h->pieces;
    if (!pieces) return;
    stretch next = pool.now->soon(pool.now, h->phase, pool.team, me);
    h->pieces = 0;
    if (__atomic_sub_fetch(&pool.left, pieces, __ATOMIC_ACQ_REL)) request(next);
    else open_next(h, 1, me);
}

/* Runs what is to be had; did it run anything?  Its own share is reported before it looks at the others'. */
static int take_part(int me, int others) {
    int shares = __atomic_load_n(&pool.helpers, __ATOMIC_ACQUIRE) + 1, took = 0;
    held h = {0, 0, 0};
    do {
        while (run_piece(me, &h, me)) took = 1;
        report(&h, me);
        for (int i = 1; others && !h.pieces && i < shares; i++)
            while (run_piece((me + i) % shares, &h, me)) took = 1;
    } while (h.pieces);
    return took;
}

static void sleep_until_more(unsigned jobs) {
    pthread_mutex_lock(&pool.lock);
    __atomic_add_fetch(&pool.sleepers, 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&pool.jobs, __ATOMIC_SEQ_CST) == jobs) pthread_cond_wait(&pool.more, &pool.lock);
    __atomic_sub_fetch(&pool.sleepers, 1, __ATOMIC_SEQ_CST);
    pthread_mutex_unlock(&pool.lock);
}

/* Does a job run that thread `me` may take part in? */
static int may_be_needed(int me) {
    int team = team_of(__atomic_load_n(&pool.of[0].ticket, __ATOMIC_RELAXED));
    return me < team && !__atomic_load_n(&pool.ended, __ATOMIC_ACQUIRE);
}

static void *help(void *number) {
    int me = (int)(intptr_t)number;
    for (;;) {
        unsigned jobs = __atomic_load_n(&pool.jobs, __ATOMIC_SEQ_CST);
        double since = 0;
        for (int n = 1; !take_part(me, n % OTHERS == 0); n++) {
            rest_a_little();
            if (n == GLANCES) since = seconds();
            else if (n % GLANCES == 0 && seconds() - since > AWAKE) {
                if (!may_be_needed(me)) {
                    sleep_until_more(jobs);
                    break;
                }
                sched_yield();
                since = seconds();
            }
        }
    }
    return NULL;
}

/* As many helpers as there should be, if the system allows; signals are for the other threads. */
static void hire(int helpers) {
    sigset_t all, before;
    pthread_t thread;
    pthread_attr_t detached;
    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (int n = pool.helpers; n < helpers; n++) {
        if (pthread_create(&thread, &detached, help, (void *)(intptr_t)(n + 1))) break;
        __atomic_store_n(&pool.helpers, n + 1, __ATOMIC_RELEASE);
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&detached);
}

static void run_alone(const job *j) {
    for (int phase = 0; phase < j->phases; phase++) {
        idx items = j->items(j, phase);
        if (items) j->run(j, phase, 0, items, 0);
    }
}

void team_run(const job *j, int threads) {
    threads = threads < MOST ? threads : MOST;
    if (threads == 1 || pthread_mutex_trylock(&pool.busy)) {    /* another Python thread has the helpers */
        run_alone(j);
        return;
    }
    if (pool.helpers < threads - 1) hire(threads - 1);
    held none = {-1, 0, 0};
    pool.first = pool.past, pool.past += j->phases;
    pool.now = j, pool.team = pool.helpers + 1 < threads ? pool.helpers + 1 : threads;
    __atomic_store_n(&pool.ended, 0, __ATOMIC_RELAXED);
    open_next(&none, 0, 0);
    __atomic_add_fetch(&pool.jobs, 1, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&pool.sleepers, __ATOMIC_SEQ_CST)) {
        pthread_mutex_lock(&pool.lock);
        pthread_cond_broadcast(&pool.more);
        pthread_mutex_unlock(&pool.lock);
    }
    for (int n = 0; !__atomic_load_n(&pool.ended, __ATOMIC_ACQUIRE); n++)
        if (take_part(0, n % OTHERS == 0)) n = 0;
        else if (n < PATIENCE) rest_a_little();
        else sched_yield();                        /* a helper's core may have another program */
    pthread_mutex_unlock(&pool.busy);
}
