/* The memory behind NumPy's arrays (NEP 49): freed blocks are kept, in one free list per size.
 *
 * (a) A training step allocates and frees the same sizes again and again.  Fresh pages cost a fault
 *     and the kernel's zeroing each; a block from a list costs neither.
 * (b) Sizes are rounded up to four classes an octave (4, 5, 6, 7 times a power of two): at most a
 *     fifth of a block is unused, and of that only pages once touched are real.
 * (c) A header stands in front of the data: the size NumPy names when it frees a block is not
 *     always the size it asked for.
 * (d) Blocks under SMALL bytes go straight back to malloc, which is good at them, and are not
 *     counted.  Those of a huge page or more are aligned to one and asked to consist of them.
 * (e) Where the lists would hold more than `cap` they are emptied first: what fills them is mostly
 *     of sizes that are no longer asked for.  So they are when the system has no memory left.
 * (f) One lock over the lists and the counts; fork waits for it, so that a child finds them whole.
 * (g) Big blocks start at different distances from a page's start: a loop over several arrays whose
 *     addresses agree in the last 12 bits takes its loads for reads of its stores, 15 % slower.
 */
#include "arena.h"
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

enum { LINE = 64, SMALL = 1 << 12, HUGE_PAGE = 1 << 21, CLASSES = 4 * 64 };

typedef struct block {
    void *base;                                    /* what malloc gave */
    struct block *next;                            /* in its free list */
    size_t size;                                   /* bytes of data it has room for */
    size_t class;                                  /* its free list; 0: small, none */
} block;

static block *lists[CLASSES];
static arena_counts counts;
static size_t cap = SIZE_MAX;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

static block *header(void *data) { return (block *)data - 1; }

static void lock(void) { pthread_mutex_lock(&mutex); }
static void unlock(void) { pthread_mutex_unlock(&mutex); }
__attribute__((constructor)) static void at_start(void) { pthread_atfork(lock, unlock, unlock); }

/* The free list for n bytes, and in *size the bytes of its blocks: n - 1 = 1xx... in binary keeps
 * its first three digits, plus one. */
static size_t class_of(size_t n, size_t *size) {
    if (n < SMALL) return *size = n, 0;
    size_t shift = 61 - __builtin_clzll(n - 1), digits = (n - 1) >> shift;
    *size = (digits + 1) << shift;
    return 4 * shift + digits;
}

static void *new_block(size_t size, size_t class, int zero) {
    size_t align = size < HUGE_PAGE ? LINE : HUGE_PAGE, colour = 0;
    if (align == HUGE_PAGE) {                      /* see (g) */
        static size_t made;
        colour = __atomic_fetch_add(&made, 1, __ATOMIC_RELAXED) % 16 * 4 * LINE;
    }
    size_t total = sizeof(block) + align + colour + size;
    char *base = zero ? calloc(1, total) : malloc(total);
    if (!base) return NULL;
    uintptr_t start = ((uintptr_t)base + sizeof(block) + align - 1) & ~(align - 1);
#ifdef MADV_HUGEPAGE
    if (align == HUGE_PAGE) madvise((void *)start, size & ~(align - 1), MADV_HUGEPAGE);
#endif
    void *data = (void *)(start + colour);
    *header(data) = (block){base, NULL, size, class};
    return data;
}

static void empty(void) {                          /* under the lock */
    for (size_t class = 0; class < CLASSES; class++)
        for (block *b; (b = lists[class]); lists[class] = b->next, free(b->base)) {}
    counts.held = 0;
}

static void *allocate(size_t n, int zero) {
    if (n > PTRDIFF_MAX / 2) return NULL;
    size_t size, class = class_of(n, &size);
    if (!class) return new_block(size, class, zero);
    lock();
    block *b = lists[class];
    if (b) lists[class] = b->next, counts.held -= size, counts.in_use += size, counts.reused++;
    unlock();
    if (b) return zero ? memset(b + 1, 0, n) : b + 1;
    void *data = new_block(size, class, zero);
    if (!data) arena_empty(), data = new_block(size, class, zero);
    lock();
    if (data) counts.in_use += size, counts.fresh++;
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
    if (!b->class) return free(b->base);
    lock();
    counts.in_use -= b->size;
    if (counts.held + b->size > cap) empty();
    int keep = b->size <= cap;
    if (keep) b->next = lists[b->class], lists[b->class] = b, counts.held += b->size;
    unlock();
    if (!keep) free(b->base);
}

void *arena_realloc(void *context, void *data, size_t n) {
    if (!data) return arena_malloc(context, n);
    size_t size, old = header(data)->size;
    if (class_of(n, &size) == header(data)->class && size <= old) return data;
    void *moved = arena_malloc(context, n);
    if (moved) memcpy(moved, data, n < old ? n : old), arena_free(context, data, old);
    return moved;
}

void arena_set_cap(size_t bytes) {
    lock();
    cap = bytes;
    if (counts.held > cap) empty();
    unlock();
}

void arena_empty(void) {
    lock();
    empty();
    unlock();
}

arena_counts arena_count(void) {
    lock();
    arena_counts copy = counts;
    unlock();
    return copy;
}
