/* Test an mLSTM cell with the vectors of `mlxhog parity export mlstm vectors/`, whose README.md
 * describes them, with the C library alone, on a little-endian machine. Yours replaces `mlstm`.
 *     cc -O2 examples/conformance.c -lm -o c && ./c vectors/ results/
 *     mlxhog parity judge vectors/ results/ */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static const char *vectors, *results;

static void fail(const char *what, const char *name) {
    fprintf(stderr, "%s: %s\n", what, name);
    exit(1);
}

static void *zeros(size_t bytes) {
    void *memory = calloc(bytes + 1, 1); /* and one to end a text */
    if (!memory) fail("no memory", "");
    return memory;
}

static char *read_file(const char *name, const char *ending) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s%s", vectors, name, ending);
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END)) fail("cannot read", path);
    long size = ftell(file);
    char *text = zeros((size_t)size);
    rewind(file);
    if (fread(text, 1, (size_t)size, file) != (size_t)size) fail("cannot read", path);
    fclose(file);
    return text;
}

typedef struct { void *data; int shape[4], rank; } Tensor; /* no data: the file has none */

/* Find a tensor in a file: u64 length of the header, the header as JSON, the data. */
static Tensor tensor(char *file, const char *name) {
    Tensor found = {0};
    char key[64], *at, *end;
    uint64_t length = *(uint64_t *)file;
    snprintf(key, sizeof key, "\"%s\"", name);
    at = strstr(file + 8, key);
    if (!at || at > file + 8 + length) return found;
    for (end = strchr(strstr(at, "\"shape\""), '['); *end != ']' && end[1] != ']';)
        found.shape[found.rank++] = (int)strtol(end + 1, &end, 10);
    end = strchr(strstr(at, "\"data_offsets\""), '[');
    found.data = file + 8 + length + strtoull(end + 1, NULL, 10);
    return found;
}

static void save(const char *name, const char *key, const float *x, int rank, const int *shape) {
    char path[4096], header[129] = "\x93NUMPY\1\0\x76\0"; /* 118 bytes follow */
    size_t count = 1, at = 10;
    at += (size_t)sprintf(header + at, "{'descr': '<f4', 'fortran_order': False, 'shape': (");
    for (int axis = 0; axis < rank; count *= (size_t)shape[axis++])
        at += (size_t)sprintf(header + at, "%d,", shape[axis]);
    sprintf(header + at, ")}%*s", (int)(126 - at), "\n"); /* spaces, and a line end at 127 */
    snprintf(path, sizeof path, "%s/%s.%s.npy", results, name, key);
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(header, 128, 1, file) + fwrite(x, 4, count, file) != 1 + count)
        fail("cannot write", path);
    fclose(file);
}

static float log_sigmoid(float x) { return fminf(x, 0) - log1pf(expf(-fabsf(x))); }

typedef struct {
    int B, S, H, K, V;
    const float *q, *k, *v, *i, *f, eps;
    const uint8_t *resets;
} Inputs;

/* Read positions first <= t < last: update the state C, n, m, and write their h. */
static void mlstm(const Inputs *x, int first, int last, float *C, float *n, float *m, float *h) {
    const int K = x->K, V = x->V;
    for (int b = 0; b < x->B; b++)
        for (int t = first; t < last; t++)
            for (int head = 0; head < x->H; head++) {
                const int state = b * x->H + head, at = (b * x->S + t) * x->H + head;
                const float *q = x->q + at * K, *k = x->k + at * K, *v = x->v + at * V;
                float *Ch = C + state * K * V, *nh = n + state * K, *mh = m + state, den = 0;
                const int keeps = !(x->resets && x->resets[b * x->S + t]);
                const float before = log_sigmoid(x->f[at]) + (keeps ? *mh : 0);
                *mh = fmaxf(before, x->i[at]);
                const float F = keeps ? expf(before - *mh) : 0, I = expf(x->i[at] - *mh);
                for (int e = 0; e < V; e++) h[at * V + e] = 0;
                for (int a = 0; a < K; a++) {
                    nh[a] = F * nh[a] + I * k[a];
                    den += nh[a] * q[a] / sqrtf((float)K);
                    for (int e = 0; e < V; e++) {
                        Ch[a * V + e] = F * Ch[a * V + e] + I * k[a] * v[e];
                        h[at * V + e] += Ch[a * V + e] * q[a] / sqrtf((float)K);
                    }
                }
                for (int e = 0; e < V; e++) h[at * V + e] /= fmaxf(fabsf(den), expf(-*mh)) + x->eps;
            }
}

static void run(const char *name) {
    char *json = read_file(name, ".json"), *file = read_file(name, ".safetensors"), key[32];
    Tensor q = tensor(file, "input.q"), v = tensor(file, "input.v");
    Inputs x = {q.shape[0], q.shape[1], q.shape[2], q.shape[3], v.shape[3], q.data,
                tensor(file, "input.k").data, v.data, tensor(file, "input.i").data,
                tensor(file, "input.f").data, strtof(strstr(json, "\"eps\":") + 6, NULL),
                tensor(file, "input.reset_mask").data};
    const int shape[4] = {x.B, x.H, x.K, x.V}, N = x.B * x.H;
    const int sizes[3] = {N * x.K * x.V, N * x.K, N};
    for (int steps = 0; steps < 2; steps++) {
        float *state[3], *h = zeros(4 * (size_t)(x.B * x.S * x.H * x.V));
        for (int part = 0; part < 3; part++) {
            snprintf(key, sizeof key, "input.state.%c", "Cnm"[part]);
            Tensor given = tensor(file, key);
            state[part] = zeros(4 * (size_t)sizes[part]);
            if (given.data) memcpy(state[part], given.data, 4 * (size_t)sizes[part]);
        }
        for (int t = 0, stride = steps ? 1 : x.S; t < x.S; t += stride)
            mlstm(&x, t, t + stride, state[0], state[1], state[2], h);
        save(name, steps ? "steps.h" : "h", h, 4, v.shape);
        for (int part = 0; part < 3; part++) {
            snprintf(key, sizeof key, "%sstate.%c", steps ? "steps." : "", "Cnm"[part]);
            save(name, key, state[part], 4 - part, shape);
            free(state[part]);
        }
        free(h);
    }
    free(json), free(file);
}

int main(int count, char **arguments) {
    if (count != 3) fail("usage", "c VECTORS RESULTS");
    vectors = arguments[1], results = arguments[2];
    mkdir(results, 0777);
    char path[4096], *manifest = read_file("manifest", ".json"), *at = manifest;
    while ((at = strstr(at, "\"mlstm-"))) {
        char *name = at + 1;
        at = strchr(name, '"');
        *at++ = 0;
        run(name);
    }
    snprintf(path, sizeof path, "%s/results.json", results);
    FILE *file = fopen(path, "w");
    if (!file) fail("cannot write", path);
    fprintf(file, "{\"format\": 1, \"implementation\": \"conformance.c\", \"dtype\": \"float32\",\n"
                  " \"claims\": {\"mlstm-*\": [\"forward\", \"states\", \"steps\"]}}\n");
    return free(manifest), fclose(file);
}
