/* RMSNorm, forward and backward, in double; with -DREAL=float in float.
   The derivation is in pyllama/ops/rms_norm.py. */
#include <math.h>

#ifndef REAL
#define REAL double
#endif

typedef REAL real;

/* 1 / the root of the mean square of a row */
static double inverse_rms(long D, const real x[D], double eps) {
    double squares = 0;
    for (long d = 0; d < D; d++) squares += (double)x[d] * x[d];
    return 1 / sqrt(squares / D + eps);
}

void rms_norm(long N, long D, const real x[N][D], const real w[D], real y[N][D], double eps) {
    for (long n = 0; n < N; n++) {
        double r = inverse_rms(D, x[n], eps);
        for (long d = 0; d < D; d++) y[n][d] = w[d] * x[n][d] * r;
    }
}

void rms_norm_backward(long N, long D, const real dy[N][D], const real x[N][D], const real w[D],
                       real dx[N][D], real dw[D], double eps) {
    for (long d = 0; d < D; d++) dw[d] = 0;
    for (long n = 0; n < N; n++) {
        double r = inverse_rms(D, x[n], eps), gn = 0;
        for (long d = 0; d < D; d++) gn += (double)w[d] * dy[n][d] * x[n][d] * r / D;
        for (long d = 0; d < D; d++) {
            dx[n][d] = r * (w[d] * dy[n][d] - x[n][d] * r * gn);
            dw[d] += dy[n][d] * x[n][d] * r;
        }
    }
}
