/* Check the RMSNorm of rms_norm.c with golden vectors: docs/vectors.md describes the files.

       pyllama export-vectors vectors --op rms_norm
       cc -o check_vectors docs/kernels/check_vectors.c -lm && ./check_vectors vectors/rms_norm.float64.safetensors
       cc -DREAL=float -o check_float docs/kernels/check_vectors.c -lm && ./check_float vectors/rms_norm.float32.safetensors

   All that it needs is in the file itself: no index, no JSON library.  The exit code is 1 if a number is wrong, 2 if
   the file cannot be read. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "rms_norm.c"

static char *header;                            /* the JSON object of the file, as text */
static char *data;                              /* the bytes of all tensors */
static int worst = 0;                           /* the exit code */

typedef struct {
    void *data;
    char dtype[8];                              /* "F64", "F32", "I64" */
    long rows, columns;                         /* of the last axis, and of the others together */
} tensor;

static void fail(const char *what, const char *name) {
    fprintf(stderr, "%s %s\n", what, name);
    exit(2);
}

/* uint64 n, little-endian; n bytes of JSON; the tensors */
static void read_file(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file) fail("cannot open", path);
    fseek(file, 0, SEEK_END);
    long size = ftell(file);
    rewind(file);
    unsigned char length[8];
    if (size < 8 || fread(length, 1, 8, file) != 8) fail("too short:", path);
    uint64_t n = 0;
    for (int i = 7; i >= 0; i--) n = n << 8 | length[i];
    if (n > (uint64_t)size - 8) fail("not a file of tensors:", path);
    header = calloc(n + 1, 1);
    data = malloc(size - 8 - n + 1);            /* malloc aligns it; the widest tensors come first */
    if (!header || !data) fail("too large:", path);
    if (fread(header, 1, n, file) != n) fail("cannot read", path);
    if (fread(data, 1, size - 8 - n, file) != (size_t)size - 8 - n) fail("cannot read", path);
    fclose(file);
}

/* The text behind "key": from here on; NULL if there is none. */
static const char *value_of(const char *text, const char *key) {
    char quoted[256];
    snprintf(quoted, sizeof quoted, "\"%s\"", key);
    const char *found = strstr(text, quoted);
    return found ? strchr(found + strlen(quoted), ':') + 1 : NULL;
}

/* {"dtype": "F64", "shape": [2, 3], "data_offsets": [0, 48]}; returns 0 if the file does not have the tensor. */
static int find(tensor *t, const char *name) {
    const char *entry = value_of(header, name);
    if (!entry) return 0;
    const char *dtype = strchr(value_of(entry, "dtype"), '"') + 1;
    snprintf(t->dtype, sizeof t->dtype, "%.*s", (int)strcspn(dtype, "\""), dtype);
    t->rows = t->columns = 1;
    char *place = strchr(value_of(entry, "shape"), '[') + 1;
    for (char *end; ; place = end + strspn(end, ", ")) {
        long n = strtol(place, &end, 10);
        if (end == place) break;
        t->rows *= t->columns;
        t->columns = n;
    }
    t->data = data + strtol(strchr(value_of(entry, "data_offsets"), '[') + 1, NULL, 10);
    return 1;
}

/* The tensor CASE/name.  The program ends if it is not there, or not of this dtype. */
static tensor get(long number, const char *name, const char *dtype) {
    char full[200];
    tensor t;
    snprintf(full, sizeof full, "%ld/%s", number, name);
    if (!find(&t, full)) fail("the file has no", full);
    if (strcmp(t.dtype, dtype)) fail("compile with the other REAL: wrong dtype of", full);
    return t;
}

static double number_of(long number, const char *name) {
    return *(const double *)get(number, name, "F64").data;
}

/* Compare a result of ours with the one in the file. */
static void compare(long number, const char *name, const real *ours) {
    tensor t = get(number, name, "F64");
    char tolerance[200];
    snprintf(tolerance, sizeof tolerance, "tolerance/%s", name);
    double bound = number_of(number, tolerance), error = 0;
    const double *theirs = t.data;
    for (long i = 0; i < t.rows * t.columns; i++) {
        double gap = fabs(ours[i] - theirs[i]);
        if (!(gap <= error)) error = gap;       /* NaN stays */
    }
    if (error <= bound) return;
    printf("case %ld: %s is off by %g > %g\n", number, name, error, bound);
    worst = 1;
}

int main(int argc, char **argv) {
    if (argc != 2) fail("usage: check_vectors", "rms_norm.float64.safetensors");
    read_file(argv[1]);
    const char *dtype = sizeof(real) == 8 ? "F64" : "F32";
    long number = 0;
    char first[40];
    tensor any;
    for (; snprintf(first, sizeof first, "%ld/input/x", number), find(&any, first); number++) {
        tensor x = get(number, "input/x", dtype), w = get(number, "input/w", dtype);
        tensor dy = get(number, "dy/y", dtype);
        long N = x.rows, D = x.columns;
        double eps = number_of(number, "option/eps");
        real *y = malloc((N * D + 1) * sizeof(real)), *dx = malloc((N * D + 1) * sizeof(real));
        real *dw = malloc((D + 1) * sizeof(real));
        if (!y || !dx || !dw) fail("there is not enough memory for", first);
        rms_norm(N, D, x.data, w.data, (void *)y, eps);
        rms_norm_backward(N, D, dy.data, x.data, w.data, (void *)dx, dw, eps);
        compare(number, "output/y", y);
        compare(number, "gradient/x", dx);
        compare(number, "gradient/w", dw);
        free(y), free(dx), free(dw);
    }
    printf("%ld cases\n", number);
    return number ? worst : 2;
}
