/* The operations of a tape, in double precision, for WebAssembly without any library.
   A name `k_x` is the operation `x` of tape.py: first the output, then the inputs, then the numbers. */

typedef double real;
typedef real pair __attribute__((vector_size(16), aligned(8)));
typedef unsigned long long bits;

#define EXPORT __attribute__((visibility("default")))
#define GEOMETRY int n, int ci, int hi, int wi, int co, int ho, int wo, int kh, int kw, int s, int p
#define R restrict

/* --- exp and log, to the last digit or two ------------------------------------------------------ */

static inline real exp_(real x) {
  if (x != x) return x;
  if (x < -745) return 0;
  if (x > 709.78) return 1.0 / 0.0;
  real k = __builtin_floor(x * 1.4426950408889634 + 0.5);
  real r = (x - k * 6.93147180369123816490e-01) - k * 1.90821492927058770002e-10;
  real sum = 1 + r / 13; /* Horner's rule, from the last term of the series to the first */
  for (int i = 12; i > 0; i--) sum = 1 + r / i * sum;
  int half = (int)k / 2; /* 2^k in two factors: k = -1074 is below the smallest normal number */
  union { bits u; real d; } one = {.u = (bits)(half + 1023) << 52}, two = {.u = (bits)((int)k - half + 1023) << 52};
  return sum * one.d * two.d;
}

static inline real log_(real x) { /* of positive normal numbers: a sum of exponentials has no others */
  union { real d; bits u; } a = {.d = x};
  int e = (int)(a.u >> 52) - 1023;
  a.u = (a.u & 0xfffffffffffffull) | (1023ull << 52);
  if (a.d > 1.4142135623730951) { a.d *= 0.5; e++; }
  real f = (a.d - 1) / (a.d + 1), sum = 0;
  for (int i = 27; i > 0; i -= 2) sum = sum * f * f + 1.0 / i;
  return e * 0.6931471805599453 + 2 * f * sum;
}

/* --- element by element ------------------------------------------------------------------------- */

EXPORT void k_fill(real *R o, int n, real v) { for (int i = 0; i < n; i++) o[i] = v; }
EXPORT void k_add(real *R o, const real *a, const real *b, int n) { for (int i = 0; i < n; i++) o[i] = a[i] + b[i]; }
EXPORT void k_sub(real *R o, const real *a, const real *b, int n) { for (int i = 0; i < n; i++) o[i] = a[i] - b[i]; }
EXPORT void k_mul(real *R o, const real *a, const real *b, int n) { for (int i = 0; i < n; i++) o[i] = a[i] * b[i]; }
EXPORT void k_div(real *R o, const real *a, const real *b, int n) { for (int i = 0; i < n; i++) o[i] = a[i] / b[i]; }
EXPORT void k_affine(real *R o, const real *R a, int n, real m, real c) { for (int i = 0; i < n; i++) o[i] = m * a[i] + c; }
EXPORT void k_abs(real *R o, const real *R a, int n) { for (int i = 0; i < n; i++) o[i] = __builtin_fabs(a[i]); }
EXPORT void k_sgn(real *R o, const real *R a, int n) { for (int i = 0; i < n; i++) o[i] = (a[i] > 0) - (a[i] < 0); }
EXPORT void k_sqrt(real *R o, const real *R a, int n) { for (int i = 0; i < n; i++) o[i] = __builtin_sqrt(a[i]); }
EXPORT void k_exp(real *R o, const real *R a, int n) { for (int i = 0; i < n; i++) o[i] = exp_(a[i]); }
EXPORT void k_sigmoid(real *R o, const real *R a, int n) { for (int i = 0; i < n; i++) o[i] = 1 / (1 + exp_(-a[i])); }
EXPORT void k_sigmoid_back(real *R o, const real *R a, const real *R y, int n) { for (int i = 0; i < n; i++) o[i] = a[i] * y[i] * (1 - y[i]); }

/* --- strided views: four axes, their strides, an offset ------------------------------------------- */

#define VIEW int d0, int d1, int d2, int d3, int s0, int s1, int s2, int s3, int f
#define EACH for (int i = 0; i < d0; i++) for (int j = 0; j < d1; j++) for (int k = 0; k < d2; k++) for (int l = 0; l < d3; l++)
#define AT (f + i * s0 + j * s1 + k * s2 + l * s3)

EXPORT void k_copy(real *R o, const real *R a, VIEW) { EACH *o++ = a[AT]; }
EXPORT void k_place(real *R o, const real *R a, int n, VIEW) { k_fill(o, n, 0); EACH o[AT] = *a++; }

/* --- sums and rows ------------------------------------------------------------------------------- */

EXPORT real dot(const real *R a, const real *R b, int n) {
  pair u = {0, 0}, v = {0, 0};
  int i = 0;
  for (; i + 4 <= n; i += 4) { u += *(pair *)(a + i) * *(pair *)(b + i); v += *(pair *)(a + i + 2) * *(pair *)(b + i + 2); }
  real sum = u[0] + u[1] + v[0] + v[1];
  for (; i < n; i++) sum += a[i] * b[i];
  return sum;
}

EXPORT void axpy(real *R y, real m, const real *R x, int n) { for (int i = 0; i < n; i++) y[i] += m * x[i]; }

EXPORT void k_sum(real *R o, const real *R a, int before, int many, int after) {
  for (int i = 0; i < before; i++)
    for (int j = 0; j < after; j++) {
      real sum = 0;
      for (int k = 0; k < many; k++) sum += a[(i * many + k) * after + j];
      o[i * after + j] = sum;
    }
}

static real most(const real *a, int n) { real m = a[0]; for (int i = 1; i < n; i++) if (a[i] > m) m = a[i]; return m; }

EXPORT void k_softmax(real *R o, const real *R a, int rows, int n) {
  for (int r = 0; r < rows; r++, a += n, o += n) {
    real m = most(a, n), sum = 0;
    for (int i = 0; i < n; i++) sum += o[i] = exp_(a[i] - m);
    for (int i = 0; i < n; i++) o[i] /= sum;
  }
}

EXPORT void k_softmax_back(real *R o, const real *R a, const real *R y, int rows, int n) {
  for (int r = 0; r < rows; r++, a += n, y += n, o += n) {
    real sum = dot(a, y, n);
    for (int i = 0; i < n; i++) o[i] = y[i] * (a[i] - sum);
  }
}

EXPORT void k_log_softmax(real *R o, const real *R a, int rows, int n) {
  for (int r = 0; r < rows; r++, a += n, o += n) {
    real m = most(a, n), sum = 0;
    for (int i = 0; i < n; i++) sum += exp_(a[i] - m);
    sum = m + log_(sum);
    for (int i = 0; i < n; i++) o[i] = a[i] - sum;
  }
}

EXPORT void k_log_softmax_back(real *R o, const real *R a, const real *R y, int rows, int n) {
  for (int r = 0; r < rows; r++, a += n, y += n, o += n) {
    real sum = 0;
    for (int i = 0; i < n; i++) sum += a[i];
    for (int i = 0; i < n; i++) o[i] = a[i] - exp_(y[i]) * sum;
  }
}

/* --- matrices ------------------------------------------------------------------------------------ */

EXPORT void k_mm(real *R o, const real *R a, const real *R b, int m, int k, int n, int a0, int a1, int b0, int b1) {
  if (b1 == 1) {
    for (int i = 0; i < m; i++, o += n) {
      k_fill(o, n, 0);
      for (int l = 0; l < k; l++) axpy(o, a[i * a0 + l * a1], b + l * b0, n);
    }
    return;
  }
  for (int i = 0; i < m; i++)
    for (int j = 0; j < n; j++) {
      const real *x = a + i * a0, *y = b + j * b1;
      real sum = 0;
      if (a1 == 1 && b0 == 1) sum = dot(x, y, k);
      else for (int l = 0; l < k; l++) sum += x[l * a1] * y[l * b0];
      *o++ = sum;
    }
}

/* o (m, n) = a (m, k; strides a0, a1) b (k, n), in blocks of 4×4; `bias` (m) may be 0 */
static void gemm(real *R o, const real *R a, const real *R b, const real *bias, int m, int k, int n, int a0, int a1) {
  int i = 0;
  for (; i + 4 <= m; i += 4) {
    int j = 0;
    for (; j + 4 <= n; j += 4) {
      pair c[4][2];
      for (int r = 0; r < 4; r++) { real v = bias ? bias[i + r] : 0; c[r][0] = c[r][1] = (pair){v, v}; }
      const real *y = b + j, *x = a + i * a0;
      for (int l = 0; l < k; l++, y += n, x += a1) {
        pair u = *(pair *)y, v = *(pair *)(y + 2);
        for (int r = 0; r < 4; r++) { real w = x[r * a0]; pair both = {w, w}; c[r][0] += both * u; c[r][1] += both * v; }
      }
      for (int r = 0; r < 4; r++) { *(pair *)(o + (i + r) * n + j) = c[r][0]; *(pair *)(o + (i + r) * n + j + 2) = c[r][1]; }
    }
    for (; j < n; j++)
      for (int r = 0; r < 4; r++) {
        real sum = bias ? bias[i + r] : 0;
        for (int l = 0; l < k; l++) sum += a[(i + r) * a0 + l * a1] * b[l * n + j];
        o[(i + r) * n + j] = sum;
      }
  }
  for (; i < m; i++)
    for (int j = 0; j < n; j++) {
      real sum = bias ? bias[i] : 0;
      for (int l = 0; l < k; l++) sum += a[i * a0 + l * a1] * b[l * n + j];
      o[i * n + j] = sum;
    }
}

/* --- convolutions: the windows of a picture as columns, and matrices ------------------------------- */

static void columns(real *R c, const real *R x, GEOMETRY) {
  for (int k = 0; k < ci; k++) for (int i = 0; i < kh; i++) for (int j = 0; j < kw; j++)
    for (int y = 0; y < ho; y++) {
      int row = y * s + i - p;
      const real *from = x + (k * hi + row) * wi;
      for (int z = 0; z < wo; z++) {
        int at = z * s + j - p;
        *c++ = row < 0 || row >= hi || at < 0 || at >= wi ? 0 : from[at];
      }
    }
}

#define SAME n, ci, hi, wi, co, ho, wo, kh, kw, s, p

EXPORT void k_conv(real *o, const real *x, const real *w, const real *bias, real *c, GEOMETRY) {
  for (int t = 0; t < n; t++, x += ci * hi * wi, o += co * ho * wo) {
    columns(c, x, SAME);
    gemm(o, w, c, bias, co, ci * kh * kw, ho * wo, ci * kh * kw, 1);
  }
}

EXPORT void k_conv_input(real *o, const real *g, const real *w, real *c, GEOMETRY) {
  int many = ci * kh * kw;
  k_fill(o, n * ci * hi * wi, 0);
  for (int t = 0; t < n; t++, g += co * ho * wo, o += ci * hi * wi) {
    gemm(c, w, g, 0, many, co, ho * wo, 1, many);
    const real *from = c;
    for (int k = 0; k < ci; k++) for (int i = 0; i < kh; i++) for (int j = 0; j < kw; j++)
      for (int y = 0; y < ho; y++, from += wo) {
        int row = y * s + i - p;
        if (row < 0 || row >= hi) continue;
        real *to = o + (k * hi + row) * wi;
        for (int z = 0; z < wo; z++) { int at = z * s + j - p; if (at >= 0 && at < wi) to[at] += from[z]; }
      }
  }
}

EXPORT void k_conv_weight(real *o, const real *x, const real *g, real *c, GEOMETRY) {
  int many = ci * kh * kw, size = ho * wo;
  k_fill(o, co * many, 0);
  for (int t = 0; t < n; t++, x += ci * hi * wi, g += co * size) {
    columns(c, x, SAME);
    for (int m = 0; m < co; m++)
      for (int k = 0; k < many; k++) o[m * many + k] += dot(g + m * size, c + k * size, size);
  }
}

/* What a compiler may call without being asked. */
void *memset(void *to, int v, unsigned long n) { unsigned char *q = to; while (n--) *q++ = v; return to; }
void *memcpy(void *R to, const void *R from, unsigned long n) {
  unsigned char *q = to; const unsigned char *r = from; while (n--) *q++ = *r++; return to;
}
