/* The plain C interface of augserve's native kernels: normalization with explicit statistics and groups.
 *
 * A tensor is (N, C, L): rows, channels, positions, with a stride in elements for each; NCHW and channels-last are
 * strides. Values are float32, or float16 / bfloat16 that are computed in float32. Sums over blocks are float32, over
 * a channel float64. Sums are cut by the group's own size, its layout and the number of channels, and added in one
 * order, so that a group's results depend neither on the number of threads nor on other groups, to the bit.
 *
 * Every field of a struct is 8 bytes wide: an int64, a double or a pointer. Functions return 0, or a negative code
 * whose text augserve_message() gives; on an error nothing has been written, but where memory ran out meanwhile.
 */
#ifndef AUGSERVE_H
#define AUGSERVE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Raised when a struct or the meaning of a function changes; the caller compares it before anything else. */
#define AUGSERVE_ABI 4

enum augserve_dtype { AUGSERVE_FLOAT32 = 0, AUGSERVE_FLOAT16 = 1, AUGSERVE_BFLOAT16 = 2 };

/* What the center and the spread of a channel are, and what x - center is divided by:
 *
 *   AUG           mu = argmin_y sum |x - y|^phi, var = mean((x - mu)^2),   sqrt(var + eps)      exponent: phi in [1, inf]
 *   ROBUST        mean, (max - min)^p,                                     spread + eps         exponent: p
 *   ROBUST_RANGE  mean, max - min,                                         spread^p + eps       exponent: p
 *
 * BatchNorm is AUG with phi = 2. */
enum augserve_kind { AUGSERVE_AUG = 0, AUGSERVE_ROBUST = 1, AUGSERVE_ROBUST_RANGE = 2 };

/* Calls body(argument, i) for every i below `tasks`, on as many threads as it likes, and returns when all are done. */
typedef struct augserve_executor {
    void (*run)(void *context, void (*body)(void *argument, size_t task), void *argument, size_t tasks);
    void *context;
} augserve_executor;

typedef struct augserve_layout {
    int64_t row, channel, position; /* strides in elements */
} augserve_layout;

/* y = weight (x - center) / divisor + bias, with the statistics of each group blended with running ones:
 * center = lambda running_center + (1 - lambda) center of the group, spread alike; lambda = 1 takes the running ones
 * as they are and looks at no value. */
typedef struct augserve_forward {
    int64_t kind, dtype, threads;
    int64_t rows, channels, positions;
    augserve_layout x_layout, y_layout;
    const void *x;
    void *y; /* may be x, where their layouts are one and `order` names no row twice */
    const float *weight, *bias; /* (C), or NULL for 1 and 0 */
    double exponent, eps;
    const float *exponents; /* phi of each channel (C), or NULL */
    double rtol;            /* width of the median's bracket, in standard deviations */
    int64_t max_steps;      /* passes of the solver at most */
    const float *start;     /* where the solver begins (C), or NULL for the mean */
    int64_t groups;         /* G; with order = NULL one group of all rows */
    const int64_t *order;   /* (N), row indices, group after group, or NULL */
    const int64_t *offsets; /* (G + 1), where each group begins in `order`, or NULL */
    const float *tracked_weight;                 /* lambda of each group (G), or NULL for 0 */
    const float *running_center, *running_spread; /* (C), or NULL where every lambda is 0 */
    /* Statistics of the groups themselves, (G, C) each, or NULL: center; spread (AUG: biased var, both ROBUST: max -
     * min); AUG: first = mean - mu, second = max |x - mu|, both ROBUST: first = min, second = max; passes taken. */
    float *center, *spread, *first, *second;
    int64_t *steps;
    /* Running averages (C) that move toward the statistics of a single group, or NULL: moving += momentum (new -
     * moving), where the spread is the variance times `unbiased`, the denominator, or the range. */
    double momentum, unbiased;
    float *moving_center, *moving_spread;
    /* What follows the norm: y = max(0, norm(x) + residual). The residual is stored and laid out as y, or NULL. */
    const void *residual;
    int64_t relu; /* 1: max(0, .), 0: not */
} augserve_forward;

/* Gradients of y = weight (x - center) / divisor + bias through the batch's own statistics (one group). */
typedef struct augserve_backward {
    int64_t kind, dtype, threads;
    int64_t rows, channels, positions;
    augserve_layout x_layout, dy_layout, dx_layout;
    const void *x, *dy;
    void *dx;
    const float *weight; /* (C), or NULL for 1 */
    double exponent, eps;
    const float *exponents;
    const float *center, *spread, *first, *second; /* (C), as augserve_run_forward wrote them */
    float *dweight, *dbias, *dexponent;            /* (C), or NULL; dexponent is 0 without exponents */
    /* Of max(0, y): dy counts where y, made again of x, weight and bias (C), or NULL for 0, is not negative or 0. */
    const float *bias;
    int64_t relu; /* 1: so, 0: not, and bias is not looked at */
} augserve_backward;

/* The generalized geometric median of each row of x (R, m), rows contiguous. */
typedef struct augserve_median {
    int64_t threads, rows, count;
    const float *x;
    double exponent;
    const float *exponents; /* (R), or NULL */
    const float *start;     /* (R), or NULL */
    double rtol;
    int64_t max_steps;
    float *value, *lower, *upper, *mean, *var; /* (R) */
    int64_t *steps, *status;                   /* (R); status: 0 converged, 1 max_steps reached, 2 not finite */
} augserve_median;

int64_t augserve_abi(void);
const char *augserve_message(int code);
/* The instruction set that the kernels run with on this processor: "avx512", "avx2" or "baseline". */
const char *augserve_instruction_set(void);

/* executor NULL: the threads of the OpenMP runtime that the process has loaded, else threads of its own. */
int augserve_run_forward(const augserve_forward *arguments, const augserve_executor *executor);
int augserve_run_backward(const augserve_backward *arguments, const augserve_executor *executor);
int augserve_run_median(const augserve_median *arguments, const augserve_executor *executor);

#ifdef __cplusplus
}
#endif

#endif
