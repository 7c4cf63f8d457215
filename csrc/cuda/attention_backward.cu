// See pyllama/ops/attention.py for the derivation.
//
// No two blocks add to one number: some go over the keys for their queries' dq, others over the queries of R heads for
// their keys' dk and dv.  Both compute p and dp again, and the scores as forward: of q / √K.

// δ = Σ dy y, a warp for each query
extern "C" __global__ void attention_delta(real *delta, const real *dy, const real *y, idx N, idx G, idx R, idx T,
                                           idx K, idx dy_b, idx dy_g, idx dy_r, idx dy_t, idx y_b, idx y_g, idx y_r,
                                           idx y_t) {
    idx n = blockIdx.x * (idx)(blockDim.x / WARP) + threadIdx.x / WARP;
    if (n >= N) return;
    idx t = n % T, r = n / T % R, g = n / T / R % G, b = n / T / R / G;
    dy += b * dy_b + g * dy_g + r * dy_r + t * dy_t, y += b * y_b + g * y_g + r * y_r + t * y_t;
    real sum = 0;
    for (idx k = threadIdx.x % WARP; k < K; k += WARP) sum += dy[k] * y[k];
    sum = warp_sum(sum);
    if (threadIdx.x % WARP == 0) delta[n] = sum;
}

extern "C" __global__ void __launch_bounds__(THREADS, (WORDS > 16 ? 3 : 4) - FEWER) attention_backward_q(
    real *dq, const real *dy, const real *q, const real *k, const real *v, const real *lse, const real *delta,
    const bool *mask, idx behind, idx ahead, idx G, idx R, idx T, idx S, idx K, idx shift, idx dy_b, idx dy_g,
    idx dy_r, idx dy_t, idx q_b, idx q_g, idx q_r, idx q_t, idx k_b, idx k_g, idx k_s, idx v_b, idx v_g,
    idx v_s EXTRAS) {
    __shared__ __align__(16) real left[ROWS * SPAN], right[COLS * SPAN], weights[ROWS * LINE];
    __shared__ idx q_spots[ROWS], dy_spots[ROWS];
    block my(G, R, T, S, behind, ahead, shift, 1);
    q += my.b * q_b + my.g * q_g, k += my.b * k_b + my.g * k_g, v += my.b * v_b + my.g * v_g;
    dq += (my.b * T * G + my.g) * R * K, dy += my.b * dy_b + my.g * dy_g;
    lse += (my.b * G + my.g) * R * T, delta += (my.b * G + my.g) * R * T;
    if (threadIdx.x < ROWS) {
        q_spots[threadIdx.x] = my.place(threadIdx.x, q_r, q_t);
        dy_spots[threadIdx.x] = my.place(threadIdx.x, dy_r, dy_t);
    }
    real sums[EACH][WIDTH / LANES] = {}, l[EACH], d[EACH], scale = SCALE;
    MORE(my.b);
#pragma unroll
    for (int i = 0; i < EACH; i++) l[i] = lse[my.place(row(i), T, 1)], d[i] = delta[my.place(row(i), T, 1)];
    for (int s = my.first; s < my.past; s += COLS) {
        rows keys = {k + s * k_s, 1, 0, k_s, my.past - s};
        real dp[EACH][ACROSS] = {}, a[EACH][ACROSS] = {};
        multiply(dp, left, {dy, 1, dy_spots}, true, right, {v + s * v_s, 1, 0, v_s, my.past - s}, K);
#pragma unroll
        for (int i = 0; i < EACH; i++)
#pragma unroll
            for (int j = 0; j < ACROSS; j++) weights[row(i) * LINE + col(j)] = dp[i][j] - d[i];
        multiply(a, left, {q, scale, q_spots}, true, right, keys, K);
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            int here = my.time(row(i)) + S - T - s, low = here - behind, high = here + ahead;
#pragma unroll
            for (int j = 0; j < ACROSS; j++) {
                real *w = weights + row(i) * LINE + col(j);
                bool seen = s + col(j) < my.past && col(j) >= low && col(j) <= high;
#ifdef EXTRA
                idx r = least(my.head(row(i)), R - 1), t = least(my.time(row(i)), T - 1);
                idx key = least(s + col(j), S - 1);
                real u = more.capped(a[i][j]);
                seen = seen && !more.hides(t, key);
                *w = seen ? exp(u + more.added(my.g * R + r, t, key) - l[i]) * *w : 0;
                if (dbias && seen && my.has(row(i))) dbias[(((my.b * G + my.g) * R + r) * T + t) * S + key] = *w;
                *w = seen ? *w * more.slope(u) : 0;
#else
                seen = seen && (!mask || mask[my.b * S + s + col(j)]);
                *w = seen ? exp(a[i][j] - l[i]) * *w : 0;
#endif
            }
        }
        add(sums, weights, right, keys, false, K);
    }
#pragma unroll
    for (int i = 0; i < EACH; i++)
        if (my.has(row(i))) put(dq + (my.time(row(i)) * G * R + my.head(row(i))) * K, sums[i], scale, K);
}

// A block for ROWS keys.  If causal, the early are seen by more queries: their blocks go first.
extern "C" __global__ void __launch_bounds__(THREADS, (WORDS > 32 ? 2 : 3) - FEWER) attention_backward_kv(
    real *dk, real *dv, const real *dy, const real *q, const real *k, const real *v, const real *lse, const real *delta,
    const bool *mask, idx behind, idx ahead, idx G, idx R, idx T, idx S, idx K, idx dy_b, idx dy_g, idx dy_r,
    idx dy_t, idx q_b, idx q_g, idx q_r, idx q_t, idx k_b, idx k_g, idx k_s, idx v_b, idx v_g, idx v_s EXTRAS) {
    __shared__ __align__(16) real left[ROWS * SPAN], right[COLS * SPAN], weights[ROWS * LINE];
    int parts = (S + ROWS - 1) / ROWS, s = blockIdx.x % parts * ROWS, rest = S - s;
    idx head = blockIdx.x / parts, g = head % G, b = head / G;
    dk += ((b * S + s) * G + g) * K, dv += ((b * S + s) * G + g) * K, lse += head * R * T, delta += head * R * T;
    q += b * q_b + g * q_g, dy += b * dy_b + g * dy_g;
    rows keys = {k + b * k_b + g * k_g + s * k_s, 1, 0, k_s, rest};
    rows values = {v + b * v_b + g * v_g + s * v_s, 1, 0, v_s, rest};

    int first = most(T - rest - ahead, 0), past = least(T - rest + least(rest, ROWS) + behind, T);
    real k_sums[EACH][WIDTH / LANES] = {}, v_sums[EACH][WIDTH / LANES] = {};
    bool open[EACH];
    MORE(b);
#pragma unroll
    for (int i = 0; i < EACH; i++) {
#ifdef EXTRA
        open[i] = row(i) < rest;
#else
        open[i] = row(i) < rest && (!mask || mask[b * S + s + row(i)]);
#endif
    }
    for (int r = 0; r < R; r++)
        for (int t = first; t < past; t += COLS) {
            rows queries = {q + r * q_r + t * q_t, SCALE, 0, q_t, past - t};
            rows gradients = {dy + r * dy_r + t * dy_t, 1, 0, dy_t, past - t};
            real a[EACH][ACROSS] = {}, dp[EACH][ACROSS] = {};
            multiply(a, left, keys, true, right, queries, K);
#pragma unroll
            for (int j = 0; j < ACROSS; j++) {
                real l = lse[r * T + least(t + col(j), past - 1)];
                int here = t + col(j) + rest - T, low = here - behind, high = here + ahead;
#pragma unroll
                for (int i = 0; i < EACH; i++) {
                    bool seen = open[i] && t + col(j) < past && row(i) >= low && row(i) <= high;
#ifdef EXTRA
                    idx query = least(t + col(j), past - 1), key = s + least(row(i), rest - 1);
                    real u = more.capped(a[i][j]);
                    seen = seen && !more.hides(query, key);
                    weights[row(i) * LINE + col(j)] = seen ? exp(u + more.added(g * R + r, query, key) - l) : 0;
                    a[i][j] = seen ? more.slope(u) : 0;
#else
                    weights[row(i) * LINE + col(j)] = seen ? exp(a[i][j] - l) : 0;
#endif
                }
            }
            multiply(dp, left, values, true, right, gradients, K);
            add(v_sums, weights, right, gradients, false, K);
            __syncwarp();
#pragma unroll
            for (int j = 0; j < ACROSS; j++) {
                real d = delta[r * T + least(t + col(j), past - 1)];
#pragma unroll
                for (int i = 0; i < EACH; i++) {
#ifdef EXTRA
                    weights[row(i) * LINE + col(j)] *= (dp[i][j] - d) * a[i][j];
#else
                    weights[row(i) * LINE + col(j)] *= dp[i][j] - d;
#endif
                }
            }
            add(k_sums, weights, right, queries, true, K);
        }
#pragma unroll
    for (int i = 0; i < EACH; i++)
        if (row(i) < rest) {
            put(dk + row(i) * G * K, k_sums[i], 1, K);
            put(dv + row(i) * G * K, v_sums[i], 1, K);
        }
}
