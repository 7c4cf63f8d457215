/* Sums over rows, as dw is.  The rows are dealt into BLOCKS blocks, however many threads there are;
 * a block adds its rows into its own row of `parts` [BLOCKS D], and these are added in order: each
 * row is read from memory once, and no result depends on `threads`. */

static inline idx first_row(idx block, idx N) { return block * N / BLOCKS; }

static void add_parts(real *restrict sum, const real *restrict parts, idx D) {
    memset(sum, 0, D * sizeof(real));
    for (idx b = 0; b < BLOCKS; b++)
        for (idx d = 0; d < D; d++) sum[d] += parts[b * D + d];
}

/* Where a row of numbers is computed that are rounded in the end: where they will lie, or for bfloat16 in `room` [D],
 * which lies behind the parts: a row for each block. */
static inline real *wide_row(number *row, real *room) {
#if REAL == 16
    return room;
#else
    return row;
#endif
}

static inline void narrow_row(number *restrict row, const real *restrict wide, idx D) {
#if REAL == 16
    for (idx d = 0; d < D; d++) row[d] = put(wide[d]);
#endif
}

/* Elementwise loops run over CHUNK numbers at a time, and request the next ones before: an iteration takes so long
 * that a processor may not read far enough ahead by itself. */
enum { CHUNK = 128 };

static inline idx chunk_end(idx start, idx n) { return n - start < CHUNK ? n : start + CHUNK; }

static inline void fetch_bytes(const char *x, idx bytes) {
    for (idx i = 0; i < bytes; i += 64) __builtin_prefetch(x + i);
}
#define FETCH(x) fetch_bytes((const char *)(x + start + CHUNK), CHUNK * sizeof *(x))
