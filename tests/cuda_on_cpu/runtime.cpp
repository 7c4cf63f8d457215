/* The device: runs the blocks of a launch one after another, and a block's threads as fibers.
 *
 * (a) A thread keeps the floor until it waits in __syncthreads or a warp primitive, then the next
 *     has it.  In which order, and in which order the blocks come, is the launch's choice: forward,
 *     reverse or random.  A kernel whose result depends on it is wrong.
 * (b) Threads that never wait share one fiber: it takes on the next fresh thread when one is done.
 * (c) Shared memory is full of 0xFF when a block starts, NaN to whoever reads it as floats.  Behind
 *     the dynamic part and around allocations lie guard zones of 0xFF, which are looked at afterwards.
 * (d) Lanes meet in a warp primitive if they come to the same line with the same mask.  They get
 *     their results when the last one arrives: nothing is left of the meeting that a lane which runs
 *     ahead could overwrite.
 * (e) What CUDA leaves undefined is an error: a barrier that some thread does not reach or reaches at
 *     another line, a mask that names lanes which have exited, a shuffle from a lane outside it.
 * (f) Whoever finds an error abandons its fiber for the host's; kernels own nothing that would leak.
 */
#include "checker.h"
#include "faults.h"
#include "fiber.h"
#include "launch.h"
#include <algorithm>
#include <stdio.h>
#include <string.h>
#include <utility>
#include <vector>

/* ---- what cuda.h declares ---- */

namespace executor {
enum Primitive { SYNCTHREADS, SYNCWARP, SHFL, SHFL_XOR, SHFL_UP, SHFL_DOWN, BALLOT, ANY, ALL };
int lane;
alignas(1024) char dynamic_shared[MAX_SHARED + GUARD];
}
using namespace executor;
extern "C" { Triple threadIdx, blockIdx, blockDim, gridDim; }

static const char *const NAMES[] = {
    "__syncthreads", "__syncwarp", "__shfl_sync", "__shfl_xor_sync", "__shfl_up_sync", "__shfl_down_sync",
    "__ballot_sync", "__any_sync", "__all_sync"};

/* ---- threads and their failures ---- */

enum State { FRESH, READY, AT_BARRIER, IN_WARP, EXITED };

struct Meeting {                                     /* where a waiting thread stands, and what it brings */
    Primitive primitive;
    uint32_t mask;
    int source;                                      /* lane */
    uint64_t bits;
    const char *file;
    int line;
    void *pc;
};

struct Thread {
    State state;
    Fiber *fiber;
    Triple index;
    Meeting at;
    uint64_t result;
};

Running running;
static Thread threads[MAX_THREADS];
static uint32_t arrived[MAX_THREADS / WARP];         /* the lanes of each warp that are IN_WARP */
static uint32_t thread_count, alive;
constexpr uint32_t NOBODY = ~0u;
static std::vector<uint32_t> turns;                  /* the threads in the order in which they get the floor */
static uint32_t turn;                                /* how many have had it in this round */
static std::vector<Fiber *> idle;
static Fiber host;
static Failure failure;
static bool failed;
static uint64_t random_state;

static Triple split(uint32_t n, Triple size) { return {n % size.x, n / size.x % size.y, n / size.x / size.y}; }

static uint64_t image_offset(void *pc) { return pc ? (char *)pc - &__ehdr_start : 0; }

static Place place(uint32_t block, uint32_t thread, void *pc) {
    return {image_offset(pc), split(block, gridDim), split(thread, blockDim), 1};
}

void record(const char *what, uint32_t thread, void *pc, const Other &other, const void *address) {
    if (failed) return;
    failed = true;
    failure = {};
    snprintf(failure.what, sizeof failure.what, "%s", what);
    failure.here = place(running.block, thread, pc);
    failure.address = (uint64_t)address;
    if (!other.relation) return;
    snprintf(failure.relation, sizeof failure.relation, "%s", other.relation);
    failure.other = place(other.block, other.thread, other.pc);
}

void stop(const char *what, void *pc, const Other &other, const void *address) {
    record(what, running.thread, pc, other, address);
    switch_fiber(*threads[running.thread].fiber, host);
    __builtin_unreachable();
}

/* ---- giving the floor ---- */

static void set_running(uint32_t thread) {
    running.thread = thread;
    running.stack_low = threads[thread].fiber->low;
    running.stack_high = threads[thread].fiber->high;
    threadIdx = threads[thread].index;
    lane = thread % WARP;
}

static void run_threads();

static Fiber *take_fiber() {
    if (idle.empty()) {
        idle.push_back(new Fiber);
        map_stack(*idle.back());
    }
    Fiber *f = idle.back();
    idle.pop_back();
    start_fiber(*f, run_threads);
    return f;
}

static void release_fiber(Thread &t) {
    if (t.fiber) idle.push_back(std::exchange(t.fiber, nullptr));
}

/* The next thread in turn that can run; NOBODY ends the round. */
static uint32_t next_in_turn() {
    while (turn < thread_count) {
        uint32_t thread = turns[turn++];
        if (threads[thread].state == FRESH || threads[thread].state == READY) return thread;
    }
    return NOBODY;
}

static void pass_floor(Fiber &from, uint32_t to) {
    if (to == NOBODY) return switch_fiber(from, host);
    Thread &t = threads[to];
    if (!t.fiber) t.fiber = take_fiber();
    t.state = READY;
    set_running(to);
    switch_fiber(from, *t.fiber);
}

static void wait_as(State state) {
    Thread &me = threads[running.thread];
    me.state = state;
    pass_floor(*me.fiber, next_in_turn());
}

static void run_threads() {                          /* what a fiber does, see (b) */
    for (;;) {
        running.launch->run(running.launch->args);
        Thread &done = threads[running.thread];
        done.state = EXITED;
        alive--;
        uint32_t next = next_in_turn();
        if (next != NOBODY && threads[next].state == FRESH) {
            threads[next].state = READY;
            threads[next].fiber = std::exchange(done.fiber, nullptr);
            set_running(next);
        } else {
            Fiber *mine = done.fiber;
            release_fiber(done);
            pass_floor(*mine, next);
        }
    }
}

/* ---- barriers and warp primitives ---- */

static Other other_thread(const char *relation, uint32_t thread) {
    return {relation, running.block, thread, threads[thread].state == EXITED ? nullptr : threads[thread].at.pc};
}

static Other missing_thread(uint32_t thread) {
    bool exited = threads[thread].state == EXITED;
    return other_thread(exited ? "waits for @, which has exited" : "waits for @, which waits, too", thread);
}

static bool same_place(const Meeting &a, const Meeting &b) {
    return a.primitive == b.primitive && a.mask == b.mask && a.line == b.line
        && (a.file == b.file || !strcmp(a.file, b.file));
}

[[noreturn]] static void misuse(const char *fault) {
    const Meeting &at = threads[running.thread].at;
    char what[sizeof failure.what];
    snprintf(what, sizeof what, "synccheck: %s %s", NAMES[at.primitive], fault);
    stop(what, at.pc);
}

/* The first lane of thread i's mask that does not wait where it does; WARP: they are all there. */
static uint32_t absent_lane(uint32_t i) {
    const Meeting &at = threads[i].at;
    for (uint32_t l = 0; l < WARP; l++) {
        const Thread &t = threads[i / WARP * WARP + l];
        if (at.mask >> l & 1 && !(t.state == IN_WARP && same_place(at, t.at))) return l;
    }
    return WARP;
}

/* All threads wait, or have exited: let them go on from the barrier, or record who waits for ever. */
static void release_barrier() {
    uint32_t exited = thread_count, waiting = thread_count;
    for (uint32_t i = 0; i < thread_count; i++) {
        const Thread &t = threads[i];
        if (t.state == EXITED) exited = i;
        if (t.state == AT_BARRIER) waiting = i;
        if (t.state != IN_WARP) continue;
        char what[sizeof failure.what];
        snprintf(what, sizeof what, "synccheck: %s is not reached by every lane of its mask", NAMES[t.at.primitive]);
        return record(what, i, t.at.pc, missing_thread(i / WARP * WARP + absent_lane(i)));
    }
    if (exited < thread_count)
        return record("synccheck: __syncthreads is not reached by every thread", waiting, threads[waiting].at.pc,
                      missing_thread(exited));
    for (uint32_t i = 0; i < thread_count; i++)
        if (!same_place(threads[0].at, threads[i].at))
            return record("synccheck: __syncthreads is reached at two lines", i, threads[i].at.pc,
                          other_thread("and @", 0));
    for (uint32_t i = 0; i < thread_count; i++) threads[i].state = READY;
    check_barrier();
}

/* All lanes of the running thread's mask are there: give each its result. */
static void complete(uint32_t first) {
    const Meeting &mine = threads[running.thread].at;
    uint32_t ballot = 0;
    for (uint32_t l = 0; l < WARP; l++)
        if (mine.mask >> l & 1) ballot |= (uint32_t)(threads[first + l].at.bits != 0) << l;
    for (uint32_t l = 0; l < WARP; l++) {
        if (!(mine.mask >> l & 1)) continue;
        Thread &t = threads[first + l];
        t.result = mine.primitive >= BALLOT ? ballot : threads[first + t.at.source].at.bits;
        t.state = READY;
    }
    arrived[first / WARP] &= ~mine.mask;
    if (mine.primitive == SYNCWARP) check_syncwarp(first, mine.mask);
}

/* Inlined, because a call would store `at` in small parts, load it in large ones, and wait in between. */
[[gnu::always_inline]] static inline uint64_t meet(Meeting at) {
    uint32_t first = running.thread / WARP * WARP, bit = 1u << lane;
    uint32_t lanes = thread_count - first < WARP ? (1u << (thread_count - first)) - 1 : ~0u;
    Thread &me = threads[running.thread];
    me.at = at;
    if (!(at.mask & bit)) misuse("has a mask without the calling lane");
    if (at.mask & ~lanes) misuse("has a mask with lanes that the block does not have");
    if (at.source < 0 || at.source >= WARP || !(at.mask >> at.source & 1)) misuse("reads from a lane outside its mask");
    arrived[first / WARP] |= bit;
    me.state = IN_WARP;
    if (!(at.mask & ~arrived[first / WARP]) && absent_lane(running.thread) == WARP) complete(first);
    wait_as(me.state);
    return me.result;
}

void __syncthreads(const char *file, int line) {
    threads[running.thread].at = {SYNCTHREADS, 0, 0, 0, file, line, CALLER};
    wait_as(AT_BARRIER);
}

void __syncwarp(unsigned mask, const char *file, int line) { meet({SYNCWARP, mask, lane, 0, file, line, CALLER}); }

namespace executor {
unsigned long long exchange(Primitive p, unsigned mask, unsigned long long bits, int source,
                            const char *file, int line) {
    return meet({p, mask, source, bits, file, line, CALLER});
}
unsigned vote(Primitive p, unsigned mask, bool predicate, const char *file, int line) {
    return meet({p, mask, lane, predicate, file, line, CALLER});
}
}

#define ATOMIC_ADD(type) \
    type atomicAdd(type *at, type value) { \
        check_atomic(at, sizeof *at, CALLER); \
        return std::exchange(*at, *at + value); \
    }
ATOMIC_ADD(int) ATOMIC_ADD(unsigned) ATOMIC_ADD(unsigned long long) ATOMIC_ADD(float) ATOMIC_ADD(double)

/* ---- launches ---- */

static uint64_t random_number() {                    /* splitmix64 */
    uint64_t z = random_state += 0x9E3779B97F4A7C15;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
    z = (z ^ z >> 27) * 0x94D049BB133111EB;
    return z ^ z >> 31;
}

static void arrange(std::vector<uint32_t> &order, uint32_t n) {
    order.resize(n);
    for (uint32_t i = 0; i < n; i++) order[i] = running.launch->order == REVERSE ? n - 1 - i : i;
    if (running.launch->order == RANDOM)
        for (uint32_t i = n; i > 1; i--) std::swap(order[i - 1], order[random_number() % i]);
}

static void poison_shared() {
    for (uint32_t i = 0; i < running.launch->region_count; i++) {
        const Region &r = running.launch->regions[i];
        if (r.shared) memset(r.low, 0xFF, r.high - r.low);
    }
    memset(dynamic_shared + running.launch->shared_mem, 0xFF, GUARD);
}

/* The first byte of a guard zone that is no longer 0xFF, or NULL; it is mended for the launches to come. */
static char *damage(char *guard) {
    if (*guard == (char)0xFF && !memcmp(guard, guard + 1, GUARD - 1)) return nullptr;       /* this is the fast path */
    char *at = std::find_if(guard, guard + GUARD, [](char c) { return c != (char)0xFF; });
    memset(guard, 0xFF, GUARD);
    return at;
}

static void check_guard(char *guard) {
    char *at = damage(guard);
    if (!at || failed) return;
    record("memcheck: write outside every buffer", 0, nullptr, {}, at);
    failure.here.known = 0;                          /* some thread of some block */
}

static void run_block() {
    poison_shared();
    memset(arrived, 0, sizeof arrived);
    for (uint32_t i = 0; i < thread_count; i++) threads[i].state = FRESH;
    alive = thread_count;
    check_block();
    while (alive && !failed) {
        if (running.launch->order == RANDOM) arrange(turns, thread_count);
        turn = 0;
        uint32_t first = next_in_turn();
        if (first == NOBODY) release_barrier();
        else pass_floor(host, first);
        running.stack_low = nullptr;
    }
    for (uint32_t i = 0; i < thread_count; i++) release_fiber(threads[i]);
    check_guard(dynamic_shared + running.launch->shared_mem);
}

#define EXPORTED extern "C" __attribute__((visibility("default")))

/* NULL, or what went wrong, which stands until the next launch. */
EXPORTED const Failure *launch(const Launch *l) {
    running = {l, 0, 0, nullptr, nullptr};
    failed = false;
    random_state = l->seed;
    gridDim = l->grid;
    blockDim = l->block;
    thread_count = l->block.x * l->block.y * l->block.z;
    for (uint32_t i = 0; i < thread_count; i++) threads[i].index = split(i, l->block);
    std::vector<uint32_t> blocks;
    arrange(blocks, l->grid.x * l->grid.y * l->grid.z);
    arrange(turns, thread_count);
    check_launch();
    Faults faults;
    for (uint32_t b : blocks) {
        running.block = b;
        blockIdx = split(b, l->grid);
        run_block();
        if (failed) break;
    }
    for (uint32_t i = 0; i < l->region_count; i++) {
        if (l->regions[i].shared) continue;
        check_guard(l->regions[i].low - GUARD);
        check_guard(l->regions[i].high);
    }
    check_end();
    running.launch = nullptr;
    return failed ? &failure : nullptr;
}

EXPORTED char *image() { return &__ehdr_start; }
EXPORTED char *dynamic() { return dynamic_shared; }
