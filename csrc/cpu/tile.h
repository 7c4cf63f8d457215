/* The parts of every product: a tile of MR x NR sums held in registers, and the panels it reads.
 *
 * (a) One load of B serves MR products, one broadcast of A serves VECTORS of them.
 * (b) B is packed into panels of NR columns, row after row.  A is read where it lies, by rows or by
 *     columns, or from panels of MR rows packed as it lies.  So nothing is transposed but a B whose
 *     columns are contiguous.
 * (c) Each sum is taken in the order of k by multiply-and-adds alone, at the edges too: the bits of a
 *     product do not depend on where tiles begin.
 */
#pragma once
#include "real.h"

#if defined __AVX512F__
enum { WIDTH = 64, MR = 9, VECTORS = 3 };          /* 27 sums, 3 of B, 1 of A: 31 of 32 registers */
#elif defined __AVX__
enum { WIDTH = 32, MR = 6, VECTORS = 2 };          /* 15 of 16 */
#else
enum { WIDTH = 16, MR = 6, VECTORS = 2 };
#endif
enum { LANES = WIDTH / sizeof(real), NR = VECTORS * LANES, LONGEST = 384, AHEAD = 4 };
enum { APART = LONGEST + 64 / sizeof(real), PANEL = MR * APART };  /* APART: not a power of two */
typedef real vec __attribute__((vector_size(WIDTH)));
typedef real loose __attribute__((vector_size(WIDTH), aligned(sizeof(real)), may_alias));
typedef word lanes __attribute__((vector_size(WIDTH)));

#define INLINE static inline __attribute__((always_inline))
#ifdef __clang__
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 32")
#endif

typedef struct {                                   /* element (i, j) is at[i * down + j * right] */
    const real *at;
    idx down, right;                               /* one of them is 1 */
} matrix;

INLINE idx least(idx a, idx b) { return a < b ? a : b; }

INLINE matrix from(matrix m, idx i, idx j) {
    return (matrix){m.at + i * m.down + j * m.right, m.down, m.right};
}

/* Panel p of pack_rows. */
INLINE matrix packed_rows(const real *panels, matrix a, idx p) {
    return a.right == 1 ? (matrix){panels + p * PANEL, APART, 1} : (matrix){panels + p * PANEL, 1, MR};
}

/* a[rows K] as panels of MR rows, PANEL numbers each; the last panel is padded with zeros */
static void pack_rows(real *restrict to, matrix a, idx rows, idx K) {
    idx panels = (rows + MR - 1) / MR, over = panels * MR - rows;
    if (over) memset(to + (panels - 1) * PANEL, 0, PANEL * sizeof(real));
    if (a.right == 1) {
        for (idx i = 0; i < rows; i++)
            memcpy(to + i / MR * PANEL + i % MR * APART, a.at + i * a.down, K * sizeof(real));
    } else {
        for (idx k = 0; k < K; k++) {
            const real *column = a.at + k * a.right;
            real *row = to + k * MR;
            for (; column + MR <= a.at + k * a.right + rows; column += MR, row += PANEL)
                memcpy(row, column, MR * sizeof(real));
            if (over) memcpy(row, column, (MR - over) * sizeof(real));
        }
    }
}

static const word IOTA[] __attribute__((aligned(64))) = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

/* LANES x LANES numbers, transposed.  Stage s exchanges lanes l of row i + s and l + s of row i. */
INLINE void transpose(real *restrict to, const real *restrict at, idx apart) {
#ifdef __clang__
    for (idx i = 0; i < LANES; i++)
        for (idx j = 0; j < LANES; j++) to[j * NR + i] = at[i * apart + j];
#else
    vec row[LANES];
    UNROLL for (int i = 0; i < LANES; i++) row[i] = *(const loose *)(at + i * apart);
    UNROLL for (int s = 1; s < LANES; s *= 2) {
        const lanes l = *(const lanes *)IOTA, odd = (l & s) != 0;
        const lanes low = l + (odd & (LANES - s)), high = (l | s) + (odd & LANES);
        UNROLL for (int i = 0; i < LANES; i++) {
            if (i & s) continue;
            vec upper = row[i], lower = row[i + s];
            row[i] = __builtin_shuffle(upper, lower, low);
            row[i + s] = __builtin_shuffle(upper, lower, high);
        }
    }
    UNROLL for (int i = 0; i < LANES; i++) *(vec *)(to + i * NR) = row[i];
#endif
}

/* K rows of b, cols <= NR columns; padded with zeros to NR columns */
static void pack_columns(real *restrict to, matrix b, idx K, idx cols) {
    if (cols < NR) memset(to, 0, K * NR * sizeof(real));
    if (b.right == 1 && cols == NR) {
        for (idx k = 0; k < K; k++) memcpy(to + k * NR, b.at + k * b.down, NR * sizeof(real));
    } else if (b.right == 1) {
        for (idx k = 0; k < K; k++) memcpy(to + k * NR, b.at + k * b.down, cols * sizeof(real));
    } else {
        for (idx j = 0; j < cols; j += LANES) {
            idx wide = least(cols - j, LANES), whole = wide < LANES ? 0 : K / LANES * LANES;
            for (idx k = 0; k < whole; k += LANES)
                transpose(to + k * NR + j, b.at + k + j * b.right, b.right);
            for (idx l = j; l < j + wide; l++)
                for (idx k = whole; k < K; k++) to[k * NR + l] = b.at[k + l * b.right];
        }
    }
}

/* c[rows cols] = (or +=) a[MR K] b[K NR], V vectors of columns wide.  Element (i, k) of a is
 * a[i * down + k * right]; V, and the one of down and right that is 1, are constants where this is inlined. */
INLINE void tile_of(int V, idx K, const real *a, idx down, idx right, const real *b, real *c, idx ldc,
                    idx rows, idx cols, int accumulate) {
    vec sum[MR][VECTORS];
    UNROLL for (int i = 0; i < MR; i++) {
        UNROLL for (int v = 0; v < V; v++) {
            if (i < rows) __builtin_prefetch(c + i * ldc + v * LANES, 1);
            sum[i][v] = (vec){0};
        }
    }
    for (idx k = 0; k < K; k++) {
        vec bk[VECTORS];
        UNROLL for (int v = 0; v < V; v++) {
            bk[v] = *(const vec *)(b + k * NR + v * LANES);
            __builtin_prefetch(b + (k + AHEAD) * NR + v * LANES);
        }
        UNROLL for (int i = 0; i < MR; i++) {
            vec x = a[i * down + k * right] - (vec){0};
            UNROLL for (int v = 0; v < V; v++) sum[i][v] += x * bk[v];
        }
    }
    if (cols == V * LANES) {
        UNROLL for (int i = 0; i < MR; i++) {
            if (i >= rows) break;
            UNROLL for (int v = 0; v < V; v++) {
                loose *to = (loose *)(c + i * ldc + v * LANES);
                if (accumulate) sum[i][v] += *to;
                *to = sum[i][v];
            }
        }
    } else {
        vec edge[MR][V];
        UNROLL for (int i = 0; i < MR; i++)
            UNROLL for (int v = 0; v < V; v++) edge[i][v] = sum[i][v];
        for (idx i = 0; i < rows; i++)
            for (idx j = 0; j < cols; j++) {
                real *to = c + i * ldc + j, s = ((const real *)edge[i])[j];
                *to = accumulate ? *to + s : s;
            }
    }
}

/* c[rows cols] = (or +=) MR rows of a times a panel of pack_columns. */
static void tile(idx K, matrix a, const real *b, real *c, idx ldc, idx rows, idx cols, int accumulate) {
    int V = (cols + LANES - 1) / LANES;
#define TILE(V, down, right) tile_of(V, K, a.at, down, right, b, c, ldc, rows, cols, accumulate)
    if (a.right == 1) {
        if (V == 1) TILE(1, a.down, 1);
        else if (V == 2) TILE(2, a.down, 1);
        else TILE(VECTORS, a.down, 1);
    } else {
        if (V == 1) TILE(1, 1, a.right);
        else if (V == 2) TILE(2, 1, a.right);
        else TILE(VECTORS, 1, a.right);
    }
#undef TILE
}
