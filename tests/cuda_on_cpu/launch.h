/* What a launch is: module.py fills in a Launch and reads a Failure, runtime.cpp runs it, checker.cpp watches. */
#pragma once
#include <stddef.h>
#include <stdint.h>

enum { MAX_THREADS = 1024, WARP = 32 };              /* GUARD and MAX_SHARED are memory.py's */
enum Order : uint32_t { FORWARD, REVERSE, RANDOM };

struct Triple { uint32_t x, y, z; };

struct Region {                                      /* memory that a kernel may touch */
    char *low, *high;
    uint32_t granule;                                /* bytes that the checker takes for one variable */
    uint32_t shared;                                 /* an array of the block; else an allocation between guard zones */
};

struct Launch {
    void (*run)(void **args);
    void **args;
    const Region *regions;
    uint32_t region_count;
    Triple grid, block;
    uint32_t shared_mem;
    Order order;
    uint64_t seed;
};

struct Place {                                       /* pc: into the module's image; 0: not known */
    uint64_t pc;
    Triple block, thread;
    uint32_t known;
};

struct Failure {
    char what[120], relation[80];                    /* "racecheck: read", "unordered with the write by @": the other */
    Place here, other;
    uint64_t address;                                /* of the access, or 0 */
};

/* ---- between runtime.cpp and checker.cpp ---- */

extern "C" __attribute__((visibility("hidden"))) char __ehdr_start, _end;        /* this module's image in memory */

extern struct Running {                              /* what has the floor; launch == NULL: nothing */
    const Launch *launch;
    uint32_t block, thread;                          /* numbered along x, then y, then z */
    const char *stack_low, *stack_high;
} running;

struct Other { const char *relation; uint32_t block, thread; void *pc; };

/* Keep what went wrong first, there; the launch ends as soon as the host has the floor. */
void record(const char *what, uint32_t thread, void *pc, const Other &other = {}, const void *address = nullptr);

/* The same of the running thread, whose fiber never runs again. */
[[noreturn]] void stop(const char *what, void *pc, const Other &other = {}, const void *address = nullptr);

#define CALLER __builtin_return_address(0)
