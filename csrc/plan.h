/* A plan of a decoder, compiled from pyllama/decode/plan.py: its steps, and a turn of new tokens.
 * csrc/cpu/decode.c runs them. */
#pragma once

enum { EMBED, NORM, PRODUCT, PICK, HEADS, CROSS };              /* a step's kind */
enum { RMS = 1, LAYER };                                        /* its norm */
enum { SWIGLU = 1, GELU, TANH_GELU, RELU, SILU, HYPERBOLIC };   /* its activation */
enum { INT8 = 16 };                                /* a cache's kind, or REALS or FLOAT16 */
enum { TURNED = 17 };                              /* a matrix of reals that is stored as [D E] */

typedef struct {
    int kind, norm, activation, accumulate, wanted;             /* wanted: only of the wanted rows */
    const real *x, *norm_w, *norm_b;               /* [D] */
    idx ldx, D;
    double eps, scale;
    int matrices;
    stored w[3];
    const real *b[3];                              /* NULL: none */
    real *y[3], *to;                               /* y NULL: the scores; to: of the activation */
    idx ldy[3], ldto;
    int layer, interleaved;                        /* of heads, from here on: G R of width K */
    idx G, R, K, window;
    const real *q_norm, *k_norm;
} step;

typedef struct {                                   /* a layer's keys and values [B G room K] */
    void *k, *v;
    float *k_scale, *v_scale;                      /* [B G room], of INT8 */
} kept;

typedef struct {                                   /* tokens that follow each other, each the most likely one */
    idx most, V, ends;                             /* how many; ids are below V; the number of end tokens */
    const idx *end;                                /* [ends]: the last token */
    idx *ids, count;                               /* [most], and how many there are */
    int over;
} choice;

typedef struct {
    idx N, M;                                      /* rows; rows whose scores are wanted */
    idx *ids, *place;                              /* [N] token, position */
    const idx *owner, *wanted;                     /* [N] sequence; [M] row */
    choice *choice;                                /* of a turn of one row, or NULL */
    real *scores;                                  /* [M V] */
    int kind;                                      /* of the cache */
    idx room;
    const kept *caches, *memory;                   /* of each layer; memory: of reals [B G S K] */
    const real *cos, *sin, *positions;             /* [places K/2], [places D], or NULL */
    idx S;
    const char *mask;                              /* [B S], of the memory */
    const idx *source;                             /* the row of the memory that a sequence reads */
    real *normed;                                  /* [rows widest], shared by the threads, rows >= N */
    void *inputs;                                  /* stored_work(rows, widest) for Q8_0, and for Q4_0 */
    idx rows;
    idx *blocks;                                   /* room for rows + 1 numbers */
} turn;
