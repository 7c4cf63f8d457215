/* Included when bench-decode compiles llama.cpp.  GCC 12 tells its optimizer that ldtilecfg reads 8 bytes of the 64, and
   that tileloadd reads none: the stores before them are left out, and llama.cpp ends with a segmentation fault. */
#if defined __AMX_TILE__ && defined __GNUC__ && !defined __clang__
#include <immintrin.h>
#define _tile_loadconfig(at) __asm__ volatile ("ldtilecfg\t%X0" : : "m" (*(const char (*)[64])(at)) : "memory")
#undef _tile_loadd
#define _tile_loadd(tile, at, stride) do { \
        __asm__ volatile ("" : : : "memory"); \
        _tile_loadd_internal(tile, at, stride); \
    } while (0)
#endif
