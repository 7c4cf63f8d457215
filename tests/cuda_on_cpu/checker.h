/* What runtime.cpp tells the checker. Without CHECKED there is none. */
#pragma once
#include <stddef.h>
#include <stdint.h>

#if defined(CHECKED)
void check_launch();                                 /* one begins */
void check_block();                                  /* begins */
void check_end();                                    /* of the launch */
void check_barrier();                                /* every thread of the block has come to it */
void check_syncwarp(uint32_t first, uint32_t mask);  /* lanes have met; `first` is the thread that is lane 0 */
void check_atomic(void *at, size_t bytes, void *pc);
#else
inline void check_launch() {}
inline void check_block() {}
inline void check_end() {}
inline void check_barrier() {}
inline void check_syncwarp(uint32_t, uint32_t) {}
inline void check_atomic(void *, size_t, void *) {}
#endif
