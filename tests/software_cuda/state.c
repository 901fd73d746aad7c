/* The software CUDA driver: host memory for device memory, for tests of code that calls CUDA on a machine without a GPU.
 *
 * It is stricter than hardware: it checks that copies stay inside their allocation, that the calling thread has a current
 * context, that asynchronous copies use pinned memory that nobody changes meanwhile, and that all is freed. What breaks a
 * rule is noted as a violation, with the error that CUDA would give. It says nothing about speed.
 *
 * This file: the state all calls share (errors, failures to order, counts), the device and the primary context, and the
 * `soft_cuda_*` functions by which tests look in. Source: CUDA Driver API 12.9, https://docs.nvidia.com/cuda/cuda-driver-api/.
 */

#define _GNU_SOURCE
#include "driver.h"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
CUresult sticky;

enum { NAMES_MAX = 128, NAME_MAX_BYTES = 48, FAILURES_MAX = 16, STACK_MAX = 256, TEXT_MAX = 1 << 16 };

static struct { char name[NAME_MAX_BYTES]; unsigned long calls; } counts[NAMES_MAX];
static struct { char name[NAME_MAX_BYTES]; unsigned long from, to; CUresult code; } failures[FAILURES_MAX];
static char violations[TEXT_MAX];
static size_t violations_used;
static int violations_count;
static int initialized;

/* The primary context. A generation ends when it is released for the last time: what was pushed before is dead then. */
static struct CUctx_st { int unused; } primary;
static int retained;
static unsigned generation = 1;
static __thread unsigned pushed[STACK_MAX];
static __thread int depth;
static __thread CUresult told; /* the failure that a clean-up returns after its work */

static const struct { CUresult code; const char *name, *text; int is_sticky; } errors[] = {
    {CUDA_SUCCESS, "CUDA_SUCCESS", "no error", 0},
    {CUDA_ERROR_INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument", 0},
    {CUDA_ERROR_OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory", 0},
    {CUDA_ERROR_NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error", 0},
    {CUDA_ERROR_DEVICE_UNAVAILABLE, "CUDA_ERROR_DEVICE_UNAVAILABLE", "CUDA-capable device(s) is/are busy or unavailable", 0},
    {CUDA_ERROR_NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected", 0},
    {CUDA_ERROR_INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal", 0},
    {CUDA_ERROR_INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context", 0},
    {CUDA_ERROR_ECC_UNCORRECTABLE, "CUDA_ERROR_ECC_UNCORRECTABLE", "uncorrectable ECC error encountered", 1},
    {CUDA_ERROR_INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle", 0},
    {CUDA_ERROR_NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready", 0},
    {CUDA_ERROR_ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered", 1},
    {CUDA_ERROR_LAUNCH_TIMEOUT, "CUDA_ERROR_LAUNCH_TIMEOUT", "the launch timed out and was terminated", 1},
    {CUDA_ERROR_CONTEXT_IS_DESTROYED, "CUDA_ERROR_CONTEXT_IS_DESTROYED", "context is destroyed", 0},
    {CUDA_ERROR_ASSERT, "CUDA_ERROR_ASSERT", "device-side assert triggered", 1},
    {CUDA_ERROR_ILLEGAL_INSTRUCTION, "CUDA_ERROR_ILLEGAL_INSTRUCTION", "an illegal instruction was encountered", 1},
    {CUDA_ERROR_LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure", 1},
    {CUDA_ERROR_NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported", 0},
    {CUDA_ERROR_UNKNOWN, "CUDA_ERROR_UNKNOWN", "unknown error", 0},
};
enum { ERRORS = sizeof errors / sizeof errors[0] };

static int error_index(CUresult code) {
    for (int i = 0; i < ERRORS; i++)
        if (errors[i].code == code)
            return i;
    return ERRORS - 1;
}

size_t append(char *out, size_t room, size_t used, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    int wanted = used < room ? vsnprintf(out + used, room - used, format, arguments) : 0;
    va_end(arguments);
    size_t end = used + (wanted > 0 ? (size_t)wanted : 0);
    return end < room ? end : room;
}

void violation(const char *format, ...) {
    char line[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    violations_used = append(violations, sizeof violations, violations_used, "%s\n", line);
    violations_count++;
}

void break_device(CUresult code) {
    if (sticky == CUDA_SUCCESS)
        sticky = code;
    pthread_cond_broadcast(&changed);
}

/* {{{ every call goes through here */

static unsigned long *calls_of(const char *name) {
    int i = 0;
    while (i < NAMES_MAX - 1 && counts[i].name[0] && strcmp(counts[i].name, name) != 0)
        i++;
    if (!counts[i].name[0])
        snprintf(counts[i].name, NAME_MAX_BYTES, "%s", name);
    return &counts[i].calls;
}

void count_call(const char *name) { ++*calls_of(name); }

static CUresult ordered_failure(const char *name) {
    unsigned long call = *calls_of(name);
    for (int i = 0; i < FAILURES_MAX; i++)
        if (strcmp(failures[i].name, name) == 0 && failures[i].from <= call && call < failures[i].to)
            return failures[i].code;
    return CUDA_SUCCESS;
}

static CUresult check_context(const char *name) {
    if (depth == 0) {
        violation("%s: the calling thread has no current context", name);
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    if (pushed[depth - 1] != generation) {
        violation("%s: the current context of the calling thread was released", name);
        return CUDA_ERROR_CONTEXT_IS_DESTROYED;
    }
    return CUDA_SUCCESS;
}

CUresult enter(const char *name, int needs) {
    pthread_mutex_lock(&lock);
    count_call(name);
    CUresult failure = ordered_failure(name);
    if (failure != CUDA_SUCCESS && errors[error_index(failure)].is_sticky)
        break_device(failure);
    if (failure == CUDA_SUCCESS && !(needs & AFTER_ERRORS))
        failure = sticky;
    told = failure;
    if (needs & CLEANUP)
        failure = CUDA_SUCCESS;
    if (failure == CUDA_SUCCESS && (needs & INITIALIZED) && !initialized)
        failure = CUDA_ERROR_NOT_INITIALIZED;
    if (failure == CUDA_SUCCESS && (needs & CONTEXT))
        failure = check_context(name);
    if (failure != CUDA_SUCCESS)
        pthread_mutex_unlock(&lock);
    return failure;
}

CUresult leave(CUresult result) {
    pthread_mutex_unlock(&lock);
    return result != CUDA_SUCCESS ? result : told;
}

/* }}} */

/* {{{ the device and its errors: these work without a context, and after an error */

EXPORTED CUresult cuInit(unsigned int flags) {
    ENTER("cuInit", AFTER_ERRORS);
    initialized = 1;
    return leave(flags == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE);
}

EXPORTED CUresult cuGetErrorString(CUresult error, const char **text) {
    *text = errors[error_index(error)].text;
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuGetErrorName(CUresult error, const char **name) {
    *name = errors[error_index(error)].name;
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuDriverGetVersion(int *version) {
    *version = CUDA_VERSION;
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuDeviceGetCount(int *count) {
    ENTER("cuDeviceGetCount", INITIALIZED | AFTER_ERRORS);
    *count = 1;
    return leave(CUDA_SUCCESS);
}

EXPORTED CUresult cuDeviceGet(CUdevice *device, int ordinal) {
    ENTER("cuDeviceGet", INITIALIZED | AFTER_ERRORS);
    *device = ordinal;
    return leave(ordinal == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE);
}

EXPORTED CUresult cuDeviceGetName(char *name, int room, CUdevice device) {
    ENTER("cuDeviceGetName", INITIALIZED | AFTER_ERRORS);
    snprintf(name, (size_t)room, "software CUDA device %d", device);
    return leave(CUDA_SUCCESS);
}

EXPORTED CUresult cuDeviceComputeCapability(int *major, int *minor, CUdevice device) {
    (void)device;
    ENTER("cuDeviceComputeCapability", INITIALIZED | AFTER_ERRORS);
    *major = 8, *minor = 9;
    return leave(CUDA_SUCCESS);
}

EXPORTED CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
    (void)device;
    ENTER("cuDeviceGetAttribute", INITIALIZED | AFTER_ERRORS);
    switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = 8; break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = 9; break;
    case CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT: *value = 2; break;
    case CU_DEVICE_ATTRIBUTE_CONCURRENT_KERNELS: *value = 1; break;
    case CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING: *value = 1; break;
    default: *value = 0;
    }
    return leave(CUDA_SUCCESS);
}

/* }}} */

/* {{{ the primary context */

EXPORTED CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
    ENTER("cuDevicePrimaryCtxRetain", INITIALIZED);
    if (device != 0)
        return leave(CUDA_ERROR_INVALID_DEVICE);
    retained++;
    *context = &primary;
    return leave(CUDA_SUCCESS);
}

static void end_context(void) {
    retained = 0;
    generation++;
    destroy_all_streams();
    free_all_memory();
}

EXPORTED CUresult cuDevicePrimaryCtxRelease(CUdevice device) {
    ENTER("cuDevicePrimaryCtxRelease", INITIALIZED | CLEANUP);
    if (device != 0 || retained == 0)
        return leave(CUDA_ERROR_INVALID_CONTEXT);
    if (--retained == 0) {
        char live[400];
        if (describe_live(live, sizeof live) > 0) {
            for (char *newline = live; (newline = strchr(newline, '\n')); )
                *newline = ';';
            violation("cuDevicePrimaryCtxRelease: the context ends with objects that were not freed: %s", live);
        }
        end_context();
    }
    return leave(CUDA_SUCCESS);
}

EXPORTED CUresult cuCtxPushCurrent(CUcontext context) {
    ENTER("cuCtxPushCurrent", INITIALIZED | AFTER_ERRORS);
    if (context != &primary || retained == 0 || depth == STACK_MAX)
        return leave(CUDA_ERROR_INVALID_CONTEXT);
    pushed[depth++] = generation;
    return leave(CUDA_SUCCESS);
}

EXPORTED CUresult cuCtxPopCurrent(CUcontext *context) {
    ENTER("cuCtxPopCurrent", INITIALIZED | AFTER_ERRORS | CLEANUP);
    if (depth == 0)
        return leave(CUDA_ERROR_INVALID_CONTEXT);
    depth--;
    if (context)
        *context = &primary;
    return leave(CUDA_SUCCESS);
}

EXPORTED CUresult cuCtxGetCurrent(CUcontext *context) {
    ENTER("cuCtxGetCurrent", INITIALIZED | AFTER_ERRORS);
    *context = depth > 0 && pushed[depth - 1] == generation ? &primary : NULL;
    return leave(CUDA_SUCCESS);
}

EXPORTED CUresult cuCtxGetDevice(CUdevice *device) {
    ENTER("cuCtxGetDevice", INITIALIZED | CONTEXT);
    *device = 0;
    return leave(CUDA_SUCCESS);
}

EXPORTED CUresult cuCtxSynchronize(void) {
    ENTER("cuCtxSynchronize", INITIALIZED | CONTEXT);
    drain(1);
    return leave(sticky);
}

/* }}} */

/* {{{ what tests use */

size_t describe_live(char *out, size_t room) {
    size_t used = 0, count = 0;
    if (room)
        out[0] = 0;
    count += (size_t)live_memory(out, room, &used);
    count += (size_t)live_streams(out, room, &used);
    return count;
}

/* How many objects are not freed, with a line on each in `out`. */
EXPORTED int soft_cuda_live(char *out, size_t room) {
    pthread_mutex_lock(&lock);
    int count = (int)describe_live(out, room);
    if (retained > 0) {
        size_t used = strlen(out);
        append(out, room, used, "the primary context, retained %d times\n", retained);
        count++;
    }
    pthread_mutex_unlock(&lock);
    return count;
}

/* How many rules were broken since the last reset or the last `forget`, with a line on each in `out`. */
EXPORTED int soft_cuda_violations(char *out, size_t room, int forget) {
    pthread_mutex_lock(&lock);
    int count = violations_count;
    snprintf(out, room, "%.*s", (int)violations_used, violations);
    if (forget)
        violations_count = 0, violations_used = 0;
    pthread_mutex_unlock(&lock);
    return count;
}

EXPORTED unsigned long soft_cuda_calls(const char *name) {
    pthread_mutex_lock(&lock);
    unsigned long calls = *calls_of(name);
    pthread_mutex_unlock(&lock);
    return calls;
}

/* The `nth` call of that name from now (1: the next) and `times` - 1 after it return `code`. 0: no room for another order. */
EXPORTED int soft_cuda_fail(const char *name, unsigned long nth, unsigned long times, CUresult code) {
    pthread_mutex_lock(&lock);
    int i = 0;
    while (i < FAILURES_MAX && failures[i].name[0])
        i++;
    if (i < FAILURES_MAX) {
        snprintf(failures[i].name, NAME_MAX_BYTES, "%s", name);
        failures[i].from = *calls_of(name) + nth;
        failures[i].to = failures[i].from + times;
        failures[i].code = code;
    }
    pthread_mutex_unlock(&lock);
    return i < FAILURES_MAX;
}

/* The device is lost: what a kernel that goes wrong does to all later calls. */
EXPORTED void soft_cuda_break(CUresult code) {
    pthread_mutex_lock(&lock);
    break_device(code);
    pthread_mutex_unlock(&lock);
}

/* Waits for all work, then frees and forgets everything: as if the process had just loaded the driver. */
EXPORTED void soft_cuda_reset(void) {
    pthread_mutex_lock(&lock);
    reset_streams();
    end_context();
    sticky = CUDA_SUCCESS;
    initialized = 0;
    memset(failures, 0, sizeof failures);
    memset(counts, 0, sizeof counts);
    violations_count = 0, violations_used = 0;
    pthread_mutex_unlock(&lock);
}

__attribute__((destructor)) static void report_at_exit(void) {
    char text[TEXT_MAX];
    if (soft_cuda_live(text, sizeof text) > 0)
        fprintf(stderr, "software CUDA driver: not freed at exit:\n%s", text);
    if (soft_cuda_violations(text, sizeof text, 0) > 0)
        fprintf(stderr, "software CUDA driver: violations:\n%s", text);
}

/* }}} */
