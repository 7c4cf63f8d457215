/* The parts of every product: a tile of MR x NR sums held in registers, and the panels it reads.
 *
 * (a) One load of B serves MR products, one broadcast of A serves VECTORS of them.
 * (b) B is packed into panels of NR columns, row after row.  A is read where it lies, by rows or by
 *     columns, or from panels of MR rows packed as it lies.  So nothing is transposed but a B whose
 *     columns are contiguous.
 * (c) What the next tiles need is fetched while this one is computed, evenly over its time: a core waits
 *     for some 16 cache lines at once, and the loads of B wait, too, while others take all of these.
 * (d) Each sum is taken in the order of k by multiply-and-adds alone, at the edges too: the bits of a
 *     product do not depend on where tiles begin.
 */
#pragma once
#include "real.h"

#if defined __AVX512F__
enum { WIDTH = 64, MR = 9, VECTORS = 3, LONGEST = 160 };   /* 27 sums, 3 of B, 1 of A: 31 of 32 registers */
#elif defined __AVX__
enum { WIDTH = 32, MR = 6, VECTORS = 2, LONGEST = 384 };   /* 15 of 16 */
#else
enum { WIDTH = 16, MR = 6, VECTORS = 2, LONGEST = 384 };
#endif
enum { LANES = WIDTH / sizeof(real), NR = VECTORS * LANES, AHEAD = 4, LINE = 64 / sizeof(real) };
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

typedef struct {                                   /* a matrix to be fetched: so many rows of cache lines */
    const real *at;
    idx down, rows, lines, line;                   /* line: the next one of the first row */
} region;

typedef struct {                                   /* see (c) */
    const real *c;                                 /* the next tile of C, with the same ldc */
    region a, b;
    idx a_lines, b_lines;                          /* for each of MR stages of a tile */
} upcoming;

INLINE idx least(idx a, idx b) { return a < b ? a : b; }

INLINE idx parts_of(idx n, idx unit) { return (n + unit - 1) / unit; }

/* A thread's part of n numbers: whole units. */
INLINE idx share_of(idx n, idx unit, int threads) { return parts_of(parts_of(n, unit), threads) * unit; }

INLINE matrix from(matrix m, idx i, idx j) {
    return (matrix){m.at + i * m.down + j * m.right, m.down, m.right};
}

INLINE region region_of(matrix m, idx rows, idx cols) {
    if (rows <= 0 || cols <= 0) return (region){0};
    if (m.right == 1) return (region){m.at, m.down, rows, (cols + LINE - 1) / LINE, 0};
    return (region){m.at, m.right, cols, (rows + LINE - 1) / LINE, 0};
}

/* The next n lines, into the second cache. */
INLINE void fetch_lines(region *x, idx n) {
    for (; n > 0 && x->rows > 0; n--) {
        __builtin_prefetch(x->at + x->line * LINE, 0, 2);
        if (++x->line == x->lines) x->line = 0, x->rows--, x->at += x->down;
    }
}

/* Panel p of pack_rows. */
INLINE matrix packed_rows(const real *panels, matrix a, idx p) {
    return a.right == 1 ? (matrix){panels + p * PANEL, APART, 1} : (matrix){panels + p * PANEL, 1, MR};
}

/* a[rows K] as panels of MR rows, PANEL numbers each; the last panel is padded with zeros */
static inline void pack_rows(real *restrict to, matrix a, idx rows, idx K) {
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

/* K rows of V vectors, the last of which has `last` numbers and zeros */
INLINE void copy_rows(int V, real *restrict to, const real *at, idx down, idx K, idx last) {
    for (idx k = 0; k < K; k++) {
        vec row[VECTORS] = {0};
        UNROLL for (int v = 0; v < V - (last < LANES); v++) row[v] = *(const loose *)(at + k * down + v * LANES);
        if (last < LANES) memcpy(&row[V - 1], at + k * down + (V - 1) * LANES, last * sizeof(real));
        UNROLL for (int v = 0; v < V; v++) *(vec *)(to + k * NR + v * LANES) = row[v];
    }
}

/* K rows of b, cols <= NR columns; padded with zeros to a whole vector */
static inline void pack_columns(real *restrict to, matrix b, idx K, idx cols) {
    const int V = (cols + LANES - 1) / LANES;
    const idx last = cols - (V - 1) * LANES;
#define COPY(V) (last == LANES ? copy_rows(V, to, b.at, b.down, K, LANES) : copy_rows(V, to, b.at, b.down, K, last))
    if (b.right == 1) {
        if (V == 1) COPY(1);
        else if (V == 2) COPY(2);
        else COPY(VECTORS);
    } else {
        if (last < LANES)
            for (idx k = 0; k < K; k++) *(vec *)(to + k * NR + (V - 1) * LANES) = (vec){0};
        for (idx j = 0; j < cols; j += LANES) {
            idx wide = least(cols - j, LANES), whole = wide < LANES ? 0 : K / LANES * LANES;
            for (idx k = 0; k < whole; k += LANES)
                transpose(to + k * NR + j, b.at + k + j * b.right, b.right);
            for (idx l = j; l < j + wide; l++)
                for (idx k = whole; k < K; k++) to[k * NR + l] = b.at[k + l * b.right];
        }
    }
#undef COPY
}

/* c[rows cols] = (or +=) a[MR K] b[K NR], V vectors of columns wide.  Element (i, k) of a is
 * a[i * down + k * right]; V, and the one of down and right that is 1, are constants where this is inlined. */
INLINE void tile_of(int V, idx K, const real *a, idx down, idx right, const real *b, real *c, idx ldc,
                    idx rows, idx cols, int accumulate, upcoming *next) {
    const idx stage = next ? K / MR + 1 : K;
    const real *next_row = next ? next->c : NULL;
    vec sum[MR][VECTORS];
    UNROLL for (int i = 0; i < MR; i++) UNROLL for (int v = 0; v < V; v++) sum[i][v] = (vec){0};
    for (idx k = 0; k < K;) {
        if (next) {
            UNROLL for (int v = 0; v < V; v++) __builtin_prefetch(next_row + v * LANES, 1);
            next_row += ldc;
            fetch_lines(&next->a, next->a_lines);
            fetch_lines(&next->b, next->b_lines);
        }
        for (const idx end = least(K, k + stage); k < end; k++) {
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

/* Scalars instead of a matrix: on the stack, it would be loaded in other pieces than it was stored in, and such a load
 * waits until all stores before it have reached the cache. */
static void tile_at(idx K, const real *a, idx down, idx right, const real *b, real *c, idx ldc, idx rows, idx cols,
                    int accumulate, upcoming *next) {
    int V = (cols + LANES - 1) / LANES;
#define TILE(V, down, right) tile_of(V, K, a, down, right, b, c, ldc, rows, cols, accumulate, next)
    if (right == 1) {
        if (V == 1) TILE(1, down, 1);
        else if (V == 2) TILE(2, down, 1);
        else TILE(VECTORS, down, 1);
    } else {
        if (V == 1) TILE(1, 1, right);
        else if (V == 2) TILE(2, 1, right);
        else TILE(VECTORS, 1, right);
    }
#undef TILE
}

/* c[rows cols] = (or +=) MR rows of a times a panel of pack_columns. */
INLINE void tile(idx K, matrix a, const real *b, real *c, idx ldc, idx rows, idx cols, int accumulate) {
    tile_at(K, a.at, a.down, a.right, b, c, ldc, rows, cols, accumulate, NULL);
}
