/* The memory behind NumPy's arrays (NEP 49): freed blocks are kept, in one free list per size.
 *
 * (a) A training step allocates and frees the same sizes again and again.  Fresh pages cost a fault
 *     and the kernel's zeroing each; a block from a list costs neither.
 * (b) Sizes are rounded up to eight classes an octave (8 to 15 times a power of two): a block is at
 *     most an eighth larger than asked for, and of that only pages once touched are real.
 * (c) A header stands in front of the data: the size NumPy names when it frees a block is not
 *     always the size it asked for.
 * (d) Blocks under SMALL bytes go straight back to malloc, which is good at them, and are not
 *     counted.  From MAPPED bytes on they are pages that we map: malloc would keep what is given
 *     back in its heap, in holes between other blocks.  They lie one after the other in spans of
 *     SPAN bytes, which are asked to consist of huge pages.  A block of 1 MiB in small pages is read
 *     from memory at two thirds of the rate, because each 4 KiB of it has to be found by itself.
 * (e) Batches of varying length ask for ever new sizes.  Where each size keeps its blocks, memory
 *     grows with the number of lengths, to three times what is in use.  So all blocks together stay
 *     within 9/8 of the most ever wanted at once: before one is made, free ones are given back.
 *     With (b) that is 81/64 of what NumPy's own memory peaks at.  LITTLE may be held anyway.
 * (f) Giving back alone would bring the faults back.  So where its own list is empty and (e) leaves no
 *     room for another block, a request gets the smallest larger free block, unless what is in use
 *     beyond what is wanted would exceed an eighth of the peak.  With both, batches of varying length
 *     need about as many fresh blocks as without a bound.  While there is room a fresh block costs
 *     less: a large block that a small request has got is missing for the next large one, for ever.
 * (g) Given back first is the size that was not handed out for the longest time.  Of a fixed shape
 *     all sizes stay: their blocks come to less than 9/8 of the peak in training, and to 3/2 in the
 *     smallest models, for which LITTLE is enough.
 * (h) `cap` limits what is held free, too.  All of it is given back when the system has no memory.
 * (i) One lock over the lists and the counts; fork waits for it, so that a child finds them whole.
 * (j) Big blocks start at different distances from a page's start: a loop over several arrays whose
 *     addresses agree in the last 12 bits takes its loads for reads of its stores, 15 % slower.
 */
#include "arena.h"
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#ifdef __GLIBC__                                   /* which the headers above define */
#include <malloc.h>
#endif

enum { LINE = 64, SMALL = 1 << 12, MAPPED = 1 << 17, HUGE_PAGE = 1 << 21, LITTLE = 1 << 25, SPAN = 1 << 26 };
enum { CLASSES = 8 * 64 };

typedef struct block {
    void *base;                                    /* what the system gave */
    size_t total;                                  /* bytes there */
    struct block *next;                            /* in its free list */
    size_t size;                                   /* bytes of data it has room for */
    size_t class;                                  /* its free list; 0: small, none */
    size_t wanted;                                 /* the size of the class it was asked for */
} block;

static block *lists[CLASSES];
static size_t turn, last[CLASSES];                 /* when a block of this class was handed out */
static arena_counts counts;
static size_t wanted, peak;                        /* bytes: now; at most since arena_empty() */
static size_t cap = SIZE_MAX;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

static block *header(void *data) { return (block *)data - 1; }

static size_t larger(size_t a, size_t b) { return a > b ? a : b; }
static size_t room(size_t peak) { return larger(peak / 8, LITTLE); }       /* see (e) */

static void lock(void) { pthread_mutex_lock(&mutex); }
static void unlock(void) { pthread_mutex_unlock(&mutex); }
__attribute__((constructor)) static void at_start(void) { pthread_atfork(lock, unlock, unlock); }

/* The free list for n bytes, and in *size the bytes of its blocks: n - 1 = 1xxx... in binary keeps
 * its first four digits, plus one. */
static size_t class_of(size_t n, size_t *size) {
    if (n < SMALL) return *size = n, 0;
    size_t shift = 60 - __builtin_clzll(n - 1), digits = (n - 1) >> shift;
    *size = (digits + 1) << shift;
    return 8 * shift + digits;
}

static size_t rounded_up(size_t n, size_t unit) { return (n + unit - 1) & ~(unit - 1); }

/* n bytes, whole pages, that begin with a huge page: what is mapped before and behind goes back. */
static char *map(size_t n) {
    char *base = mmap(NULL, n + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0);
    if (base == MAP_FAILED) return NULL;
    size_t before = -(uintptr_t)base % HUGE_PAGE;
    if (before) munmap(base, before);
    munmap(base + before + n, HUGE_PAGE - before);
#ifdef MADV_HUGEPAGE
    madvise(base + before, n, MADV_HUGEPAGE);
#endif
    return base + before;
}

/* The next n bytes of the span, whole pages; of another span if this one has too few left. */
static char *from_span(size_t n) {
    static char *next;
    static size_t left;
    char *base = NULL, *span;
    lock();
    if (left < n && (span = map(SPAN))) {
        if (left) munmap(next, left);
        next = span, left = SPAN;
    }
    if (left >= n) base = next, next += n, left -= n;
    unlock();
    return base;
}

static void *from_system(size_t n, int zero) {     /* see (d) */
    if (n < MAPPED) return zero ? calloc(1, n) : malloc(n);
    char *base = n <= SPAN / 4 ? from_span(n) : NULL;
    return base ? base : map(n);
}

static void to_system(block *b) {
    if (b->total < MAPPED) free(b->base);
    else munmap(b->base, b->total);
}

static void *new_block(size_t size, size_t class, int zero) {
    size_t color = 0, total = sizeof(block) + LINE + size;
    if (total >= MAPPED) {                         /* see (j) */
        static size_t made;
        color = __atomic_fetch_add(&made, 1, __ATOMIC_RELAXED) % 16 * 4 * LINE;
        total = rounded_up(total + color, sysconf(_SC_PAGESIZE));
    }
    char *base = from_system(total, zero);
    if (!base) return NULL;
    uintptr_t start = rounded_up((uintptr_t)base + sizeof(block), LINE);
    void *data = (void *)(start + color);
    *header(data) = (block){base, total, NULL, size, class, size};
    return data;
}

static block *pop(size_t class) {                  /* under the lock, as are the next three */
    block *b = lists[class];
    lists[class] = b->next;
    counts.held -= b->size;
    return b;
}

static void give_back(size_t limit) {              /* until no more than that is held */
    while (counts.held > limit) {
        size_t oldest = 0;
        for (size_t class = 1; class < CLASSES; class++)
            if (lists[class] && (!oldest || last[class] < last[oldest])) oldest = class;
        to_system(pop(oldest));
    }
}

static size_t most(size_t size) {                  /* bytes of all blocks, with one of this size: see (e) */
    size_t top = larger(peak, wanted + size);
    return top + room(top);
}

static block *reuse(size_t size, size_t class) {   /* see (f) */
    size_t own = class;
    if (!lists[own] && counts.held + counts.in_use + size <= most(size)) return NULL;
    while (class < CLASSES && !lists[class]) class++;
    if (class == CLASSES) return NULL;
    size_t beyond = counts.in_use + lists[class]->size - wanted - size;
    if (class != own && beyond > peak / 8) return NULL;
    return pop(class);
}

static void make_room(size_t size) {
    size_t used = counts.in_use + size, all = most(size);
    give_back(all > used ? all - used : 0);
}

static void hand_out(block *b, size_t size) {
    b->wanted = size;
    wanted += size;
    peak = larger(peak, wanted);
    last[b->class] = ++turn;
}

static void *allocate(size_t n, int zero) {
    if (n > PTRDIFF_MAX / 2) return NULL;
    size_t size, class = class_of(n, &size);
    if (!class) return new_block(size, class, zero);
    lock();
    block *b = reuse(size, class);
    if (b) hand_out(b, size), counts.reused++;
    else make_room(size);
    counts.in_use += b ? b->size : size;           /* one that is still to be made takes room already */
    unlock();
    if (b) return zero ? memset(b + 1, 0, n) : b + 1;
    void *data = new_block(size, class, zero);
    if (!data) arena_empty(), data = new_block(size, class, zero);
    lock();
    if (data) hand_out(header(data), size), counts.fresh++;
    else counts.in_use -= size;
    unlock();
    return data;
}

void *arena_malloc(void *context, size_t n) { (void)context; return allocate(n, 0); }

void *arena_calloc(void *context, size_t count, size_t size) {
    (void)context;
    return size && count > SIZE_MAX / size ? NULL : allocate(count * size, 1);
}

void arena_free(void *context, void *data, size_t n) {
    (void)context, (void)n;
    if (!data) return;
    block *b = header(data);
    if (!b->class) return to_system(b);
    lock();
    counts.in_use -= b->size;
    wanted -= b->wanted;
    b->next = lists[b->class];
    lists[b->class] = b;
    counts.held += b->size;
    give_back(cap);
    unlock();
}

void *arena_realloc(void *context, void *data, size_t n) {
    if (!data) return arena_malloc(context, n);
    block *b = header(data);
    size_t size, class = class_of(n, &size), old = b->size;
    if (class ? size == b->wanted : !b->class && size <= old) return data;
    void *moved = arena_malloc(context, n);
    if (moved) memcpy(moved, data, n < old ? n : old), arena_free(context, data, old);
    return moved;
}

void arena_set_cap(size_t bytes) {
    lock();
    cap = bytes;
    give_back(cap);
    unlock();
}

void arena_empty(void) {
    lock();
    give_back(0);
    peak = wanted;
    unlock();
#ifdef __GLIBC__
    malloc_trim(0);                                /* holes between blocks of the heap, of arrays made before */
#endif
}

arena_counts arena_count(void) {
    lock();
    arena_counts copy = counts;
    unlock();
    return copy;
}
