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
