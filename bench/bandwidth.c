/* The time to read memory with several threads: bench/bandwidth.py. */
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { LINE = 64, AHEAD = 4096 };           /* the hardware's prefetcher stops at the end of a page */

typedef uint64_t words __attribute__((vector_size(LINE)));

/* bytes of memory that have been written, in huge pages where possible; 0 if there is not enough */
void *filled(size_t bytes)
{
    void *at = mmap(0, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED)
        return 0;
    madvise(at, bytes, MADV_HUGEPAGE);
    memset(at, 1, bytes);
    return at;
}

/* Reads all bytes `times` times, each thread always the same part; returns the seconds.  The sum keeps the compiler
   from leaving the loads out. */
double seconds(const char *at, size_t bytes, int times, int threads, uint64_t *sum)
{
    size_t part = bytes / threads / (2 * LINE) * (2 * LINE);
    uint64_t total = 0;
    double begin = omp_get_wtime();
    #pragma omp parallel num_threads(threads) reduction(+ : total)
    {
        const char *from = at + part * omp_get_thread_num();
        words a = {0}, b = {0};
        for (int time = 0; time < times; time++)
            for (const char *p = from; p < from + part; p += 2 * LINE) {
                __builtin_prefetch(p + AHEAD);
                __builtin_prefetch(p + AHEAD + LINE);
                a += *(const words *)p;
                b += *(const words *)(p + LINE);
            }
        a += b;
        for (int i = 0; i < LINE / 8; i++)
            total += a[i];
    }
    *sum = total;
    return omp_get_wtime() - begin;
}
