// See pyllama/ops/attention.py for the derivation; the softmax is online, as in csrc/cpu/attention.c.
//
// A block goes over the keys that its queries see, COLS at a time, in ascending order.  Where queries are too few to
// fill a device, as in decoding, `splits` blocks share the keys: each writes its result as if its keys were all, with
// lse = -∞ where it sees none, and attention_join weighs the parts, in order.

extern "C" __global__ void __launch_bounds__(THREADS, (WORDS > 32 ? 3 : 4) - FEWER) attention(
    real *y, real *lse, const real *q, const real *k, const real *v, const bool *mask, idx behind, idx ahead, idx B,
    idx G, idx R, idx T, idx S, idx K, idx shift, idx splits, idx q_b, idx q_g, idx q_r, idx q_t, idx k_b, idx k_g,
    idx k_s, idx v_b, idx v_g, idx v_s EXTRAS) {
    __shared__ __align__(16) real left[ROWS * SPAN], right[COLS * SPAN], weights[ROWS * LINE];
    __shared__ idx spots[ROWS];
    block my(G, R, T, S, behind, ahead, shift, splits);
    q += my.b * q_b + my.g * q_g, k += my.b * k_b + my.g * k_g, v += my.b * v_b + my.g * v_g;
    y += ((my.split * B + my.b) * T * G + my.g) * R * K, lse += ((my.split * B + my.b) * G + my.g) * R * T;
    if (threadIdx.x < ROWS) spots[threadIdx.x] = my.place(threadIdx.x, q_r, q_t);

    real sums[EACH][WIDTH / LANES] = {}, top[EACH], total[EACH] = {}, scale = SCALE;
    MORE(my.b);
#pragma unroll
    for (int i = 0; i < EACH; i++) top[i] = minus_infinity();
    for (int s = my.first; s < my.past; s += COLS) {
        real a[EACH][ACROSS] = {};
        multiply(a, left, {q, scale, spots}, s == my.first, right, {k + s * k_s, 1, 0, k_s, my.past - s}, K);
        bool open[ACROSS];
#pragma unroll
        for (int j = 0; j < ACROSS; j++) {
#ifdef EXTRA
            open[j] = s + col(j) < my.past;
#else
            open[j] = s + col(j) < my.past && (!mask || mask[my.b * S + s + col(j)]);
#endif
        }
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            int here = my.time(row(i)) + S - T - s, low = here - behind, high = here + ahead;
            real peak = top[i];
#pragma unroll
            for (int j = 0; j < ACROSS; j++) {
#ifdef EXTRA
                idx h = my.g * R + least(my.head(row(i)), R - 1), t = least(my.time(row(i)), T - 1);
                idx key = least(s + col(j), S - 1);
                a[i][j] = more.hides(t, key) ? minus_infinity() : more.capped(a[i][j]) + more.added(h, t, key);
#endif
                if (!open[j] || col(j) < low || col(j) > high) a[i][j] = minus_infinity();
                peak = a[i][j] > peak ? a[i][j] : peak;
            }
#pragma unroll
            for (int step = LANES / 2; step > 0; step /= 2) {
                real other = __shfl_xor_sync(ALL, peak, step);
                peak = other > peak ? other : peak;
            }
            real base = peak > minus_infinity() ? peak : 0, shrink = exp(top[i] - base);  // no key yet: e^(-∞ - 0)
            top[i] = peak, total[i] *= shrink;
#pragma unroll
            for (int c = 0; c < WIDTH / LANES; c++) sums[i][c] *= shrink;
#pragma unroll
            for (int j = 0; j < ACROSS; j++) {
                real p = exp(a[i][j] - base);
                weights[row(i) * LINE + col(j)] = p, total[i] += p;
            }
        }
        add(sums, weights, right, {v + s * v_s, 1, 0, v_s, my.past - s}, true, K);
    }
#pragma unroll
    for (int i = 0; i < EACH; i++) {
#pragma unroll
        for (int step = LANES / 2; step > 0; step /= 2) total[i] += __shfl_xor_sync(ALL, total[i], step);
        if (!my.has(row(i))) continue;
        idx r = my.head(row(i)), t = my.time(row(i));
        put(y + (t * G * R + r) * K, sums[i], total[i] ? 1 / total[i] : 0, K);
        if (lane() == 0) lse[r * T + t] = total[i] ? top[i] + log(total[i]) : splits > 1 ? minus_infinity() : 0;
    }
}

// A warp for each of N queries: y [B T H K] and lse [B H T] from `splits` of each.
extern "C" __global__ void attention_join(real *y, real *lse, const real *y_parts, const real *lse_parts, idx N,
                                          idx H, idx T, idx K, idx splits) {
    idx n = blockIdx.x * (idx)(blockDim.x / WARP) + threadIdx.x / WARP;
    if (n >= N) return;
    idx at = ((n / T / H * T + n % T) * H + n / T % H) * K;
    real peak = minus_infinity(), total = 0;
    for (idx i = 0; i < splits; i++) peak = lse_parts[i * N + n] > peak ? lse_parts[i * N + n] : peak;
    real base = peak > minus_infinity() ? peak : 0;
    for (idx i = 0; i < splits; i++) total += exp(lse_parts[i * N + n] - base);
    for (idx k = threadIdx.x % WARP; k < K; k += WARP) {
        real sum = 0;
        for (idx i = 0; i < splits; i++) sum += exp(lse_parts[i * N + n] - base) * y_parts[i * N * K + at + k];
        y[at + k] = total ? sum / total : 0;
    }
    if (threadIdx.x % WARP == 0) lse[n] = total ? base + log(total) : 0;
}
