/* The memory behind NumPy's arrays: see arena.c. */
#pragma once
#include <stddef.h>

typedef struct {
    size_t held, in_use;                           /* bytes: in the free lists, in arrays */
    size_t reused, fresh;                          /* blocks handed out again, blocks made */
} arena_counts;

void *arena_malloc(void *context, size_t n);
void *arena_calloc(void *context, size_t count, size_t size);
void *arena_realloc(void *context, void *data, size_t n);
void arena_free(void *context, void *data, size_t n);

void arena_set_cap(size_t bytes);                  /* on `held`; what is above is given back now */
void arena_empty(void);                            /* hand every free block back to the system */
arena_counts arena_count(void);
