/* Looks at every access that a kernel of the checked build makes.
 *
 * (a) gcc's -fsanitize=thread puts a call before each access and -fsanitize=alignment,bounds,... one
 *     where a rule of C++ is broken.  They lead here, not into the sanitizers' own runtimes, which
 *     know nothing of blocks and warps.
 * (b) Legal are the allocations that the launch was given, the block's shared arrays, the thread's
 *     own stack and, to read, the module's constants.  (memcheck)
 * (c) Of each granule, the size of an array's elements, stands who wrote it, who read it and who
 *     added to it atomically, and when.  Time ticks at each block, barrier and __syncwarp.
 * (d) Two accesses of different threads are ordered if a barrier of their block lies between, or a
 *     __syncwarp of both; nothing orders blocks, and a shuffle orders no memory, as CUDA has it.
 *     Otherwise they race, unless both read or both are atomic.  (racecheck)
 * (e) A history keeps four of many accesses: the last one, and the last ones before it by the same
 *     warp, by another warp, by another block.  Whatever races with a forgotten access races with one
 *     of these, but for warps that synchronize under several masks.
 * (f) Shared memory belongs to a block: what an earlier block left counts as never written, and to
 *     read it is an error.  (initcheck)
 */
#include "checker.h"
#include "launch.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vector>

extern "C" __attribute__((visibility("hidden"), weak)) char __start_cuda_shared[], __stop_cuda_shared[];
namespace executor { extern char dynamic_shared[MAX_SHARED + GUARD]; }

namespace {

enum Kind { READ, WRITE, ATOMIC };
const char *const NAMES[] = {"read", "write", "atomic operation"};

struct Access {
    uint32_t who, when, pc;                          /* when == 0: there was none */
};
struct History { Access latest, same_warp, other_warp, other_block; };
struct alignas(64) Cell { Access write; History reads; };                       /* a line of the cache */

struct Watched {                                     /* for each granule of the region */
    Region region;
    Cell *cells;
    History *atomics;
    void *memory[2];
};

std::vector<Watched> watched;
Watched *last_hit;
uint32_t now, block_start, last_barrier;
uint32_t seen[MAX_THREADS][WARP];                    /* [t][l]: what lane l did before then is ordered before t */

/* `who`: the thread's number within the block in the low bits, the block's above. */
constexpr uint32_t THREAD_BITS = 10;
uint32_t block_of(uint32_t who) { return who >> THREAD_BITS; }
uint32_t thread_of(uint32_t who) { return who & (MAX_THREADS - 1); }
uint32_t warp_of(uint32_t who) { return who / WARP; }                           /* over all blocks */
uint32_t me() { return running.block << THREAD_BITS | running.thread; }

bool unordered(const Access &a, bool shared) {
    if (a.when < (shared ? block_start : 1) || a.who == me()) return false;
    if (block_of(a.who) != running.block) return true;
    if (a.when < last_barrier) return false;
    return warp_of(a.who) != warp_of(me()) || a.when >= seen[running.thread][a.who % WARP];
}

const Access *unordered(const History &h, bool shared) {
    if (!h.latest.when) return nullptr;
    for (const Access *a : {&h.latest, &h.same_warp, &h.other_warp, &h.other_block})
        if (unordered(*a, shared)) return a;
    return nullptr;
}

void remember(History &h, const Access &mine) {
    const Access &last = h.latest;
    if (last.when && last.who != mine.who) {
        bool same_block = block_of(last.who) == block_of(mine.who), same_warp = warp_of(last.who) == warp_of(mine.who);
        (same_warp ? h.same_warp : same_block ? h.other_warp : h.other_block) = last;
    }
    h.latest = mine;
}

[[noreturn]] void race(Kind mine, Kind others, const Access &a, void *pc, const void *at) {
    char what[80], relation[80];
    snprintf(what, sizeof what, "racecheck: %s", NAMES[mine]);
    snprintf(relation, sizeof relation, "unordered with the %s by @", NAMES[others]);
    stop(what, pc, {relation, block_of(a.who), thread_of(a.who), &__ehdr_start + a.pc}, at);
}

void check_granule(Cell &c, History &atomics, Kind kind, bool shared, void *pc, const char *at) {
    Access mine = {me(), now, (uint32_t)((char *)pc - &__ehdr_start)};
    if (kind == READ && c.reads.latest.who == mine.who && c.reads.latest.when == now) return;      /* as a moment ago */
    if (shared && kind != WRITE && c.write.when < block_start) stop("initcheck: read before any write", pc, {}, at);
    if (unordered(c.write, shared)) race(kind, WRITE, c.write, pc, at);
    if (kind != READ)
        if (const Access *a = unordered(c.reads, shared)) race(kind, READ, *a, pc, at);
    if (kind != ATOMIC)
        if (const Access *a = unordered(atomics, shared)) race(kind, ATOMIC, *a, pc, at);
    if (kind == WRITE) c.write = mine;
    else remember(kind == READ ? c.reads : atomics, mine);
}

bool within(const char *at, size_t bytes, const char *low, const char *high) {
    return at >= low && at < high && bytes <= (size_t)(high - at);
}

Watched *find(const char *at, size_t bytes) {
    if (last_hit && within(at, bytes, last_hit->region.low, last_hit->region.high)) return last_hit;
    for (Watched &w : watched)
        if (within(at, bytes, w.region.low, w.region.high)) return last_hit = &w;
    return nullptr;
}

bool is_constant(const char *at, size_t bytes) {
    return within(at, bytes, &__ehdr_start, &_end) && !within(at, 1, __start_cuda_shared, __stop_cuda_shared)
        && !within(at, 1, executor::dynamic_shared, executor::dynamic_shared + MAX_SHARED + GUARD);
}

void check(void *address, size_t bytes, Kind kind, void *pc) {
    const char *at = (const char *)address;
    if (within(at, bytes, running.stack_low, running.stack_high)) return;
    Watched *w = find(at, bytes);
    if (w) {
        const Region &r = w->region;
        size_t first = (at - r.low) / r.granule, last = (at + bytes - 1 - r.low) / r.granule;
        for (size_t i = first; i <= last; i++) check_granule(w->cells[i], w->atomics[i], kind, r.shared, pc, at);
    } else if (kind != READ || !is_constant(at, bytes)) {
        char what[80];
        snprintf(what, sizeof what, "memcheck: %s of %zu bytes outside every buffer", NAMES[kind], bytes);
        stop(what, pc, {}, at);
    }
}

void *aligned(void *at, uintptr_t to) { return (void *)(((uintptr_t)at + to - 1) & -to); }

void forget_launch() {
    for (const Watched &w : watched)
        for (void *m : w.memory) free(m);
    watched.clear();
    last_hit = nullptr;
}

}

void check_launch() {
    now = 0;
    memset(seen, 0, sizeof seen);
    for (uint32_t i = 0; i < running.launch->region_count; i++) {
        const Region &r = running.launch->regions[i];
        size_t n = (r.high - r.low) / r.granule + 1;
        void *cells = calloc(n + 1, sizeof(Cell)), *atomics = calloc(n, sizeof(History));
        if (!cells || !atomics) abort();
        watched.push_back({r, (Cell *)aligned(cells, alignof(Cell)), (History *)atomics, {cells, atomics}});
    }
}

void check_block() { block_start = last_barrier = ++now; }

void check_end() { forget_launch(); }

void check_barrier() { last_barrier = ++now; }

void check_syncwarp(uint32_t first, uint32_t mask) {
    uint32_t joined[WARP] = {};
    now++;
    for (uint32_t t = 0; t < WARP; t++) {
        if (!(mask >> t & 1)) continue;
        for (uint32_t l = 0; l < WARP; l++)
            if (seen[first + t][l] > joined[l]) joined[l] = seen[first + t][l];
    }
    for (uint32_t t = 0; t < WARP; t++)
        if (mask >> t & 1) joined[t] = now;
    for (uint32_t t = 0; t < WARP; t++)
        if (mask >> t & 1) memcpy(seen[first + t], joined, sizeof joined);
}

void check_atomic(void *at, size_t bytes, void *pc) { check(at, bytes, ATOMIC, pc); }

/* ---- what the sanitizers call ---- */

extern "C" {

void __tsan_init() {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit() {}

#define ACCESS(bytes) \
    void __tsan_read##bytes(void *at) { check(at, bytes, READ, CALLER); } \
    void __tsan_write##bytes(void *at) { check(at, bytes, WRITE, CALLER); } \
    void __tsan_unaligned_read##bytes(void *at) { check(at, bytes, READ, CALLER); } \
    void __tsan_unaligned_write##bytes(void *at) { check(at, bytes, WRITE, CALLER); }
ACCESS(1) ACCESS(2) ACCESS(4) ACCESS(8) ACCESS(16)
void __tsan_read_range(void *at, size_t bytes) { check(at, bytes, READ, CALLER); }
void __tsan_write_range(void *at, size_t bytes) { check(at, bytes, WRITE, CALLER); }

struct Mismatch { const char *file; uint32_t line, column; void *type; uint8_t log_alignment, kind; };

void __ubsan_handle_type_mismatch_v1(Mismatch *m, void *at) {
    char what[80];
    snprintf(what, sizeof what, "memcheck: misaligned access, which needs a multiple of %d,", 1 << m->log_alignment);
    stop(what, CALLER, {}, at);
}
void __ubsan_handle_out_of_bounds(void *, void *) { stop("memcheck: index outside the bounds of an array", CALLER); }
void __ubsan_handle_shift_out_of_bounds(void *, void *, void *) { stop("shift by more bits than there are", CALLER); }
void __ubsan_handle_divrem_overflow(void *, void *, void *) { stop("division of integers by zero", CALLER); }
void __ubsan_handle_add_overflow(void *, void *, void *) { stop("overflow of an integer sum", CALLER); }
void __ubsan_handle_sub_overflow(void *, void *, void *) { stop("overflow of an integer difference", CALLER); }
void __ubsan_handle_mul_overflow(void *, void *, void *) { stop("overflow of an integer product", CALLER); }
void __ubsan_handle_negate_overflow(void *, void *) { stop("overflow of a negated integer", CALLER); }

}
