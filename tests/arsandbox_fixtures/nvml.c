/* A stand-in for NVIDIA's libnvidia-ml.so.1, for the real nvidia-ml-py on machines without a GPU.
 *
 * Its devices are the lines of the file that STANDIN_NVML names, read anew at each call; without it the driver
 * counts as not loaded. A line: uuid|name|total|used|utilisation|clock|reasons|pid|parent, where pid 0 is nobody,
 * parent - is none, and a device of which no line tells any more is lost.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, BAD_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, TOO_SMALL = 7, NOT_LOADED = 9, LOST = 15 };
enum { MOST = 16 };

typedef struct {
    char uuid[96], name[96], parent[96];
    unsigned long long total, used, reasons;
    unsigned int utilisation, clock, pid;
} Device;

static char known[MOST][96]; /* a handle is a place in here plus one */
static int count_known;

static int load(Device *devices) {
    const char *path = getenv("STANDIN_NVML");
    FILE *file = path ? fopen(path, "r") : NULL;
    char line[512];
    int count = 0;
    if (!file) return -1;
    while (count < MOST && fgets(line, sizeof line, file)) {
        Device *d = &devices[count];
        if (sscanf(line, "%95[^|]|%95[^|]|%llu|%llu|%u|%u|%llu|%u|%95[^|\n]", d->uuid, d->name, &d->total, &d->used,
                   &d->utilisation, &d->clock, &d->reasons, &d->pid, d->parent) == 9)
            count++;
    }
    fclose(file);
    return count;
}

static void *handle_of(const char *uuid) {
    for (int i = 0; i < count_known; i++)
        if (!strcmp(known[i], uuid)) return (void *)(long)(i + 1);
    if (count_known == MOST) abort();
    strcpy(known[count_known++], uuid);
    return (void *)(long)count_known;
}

static int device_of(void *handle, Device *device) {
    Device devices[MOST];
    int count = load(devices);
    for (int i = 0; i < count; i++)
        if (!strcmp(devices[i].uuid, known[(long)handle - 1])) {
            *device = devices[i];
            return OK;
        }
    return LOST;
}

static int is_whole(const Device *device) { return !strcmp(device->parent, "-"); }

int nvmlInitWithFlags(unsigned int flags) {
    Device devices[MOST];
    return load(devices) < 0 ? NOT_LOADED : OK;
}
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int code) { return code == LOST ? "GPU is lost" : code == NOT_LOADED ? "Driver Not Loaded" : "Error"; }
int nvmlSystemGetDriverVersion(char *text, unsigned int size) {
    snprintf(text, size, "%s", getenv("STANDIN_DRIVER") ? getenv("STANDIN_DRIVER") : "570.86.15");
    return OK;
}
int nvmlDeviceGetCount_v2(unsigned int *number) {
    Device devices[MOST];
    int count = load(devices);
    *number = 0;
    for (int i = 0; i < count; i++) *number += is_whole(&devices[i]);
    return OK;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **handle) {
    Device devices[MOST];
    int count = load(devices);
    for (int i = 0; i < count; i++)
        if (is_whole(&devices[i]) && index-- == 0) {
            *handle = handle_of(devices[i].uuid);
            return OK;
        }
    return BAD_ARGUMENT;
}
int nvmlDeviceGetHandleByUUID(const char *uuid, void **handle) {
    Device device;
    *handle = handle_of(uuid);
    return device_of(*handle, &device);
}
int nvmlDeviceGetUUID(void *handle, char *text, unsigned int size) {
    Device device;
    int result = device_of(handle, &device);
    if (!result) snprintf(text, size, "%s", device.uuid);
    return result;
}
int nvmlDeviceGetName(void *handle, char *text, unsigned int size) {
    Device device;
    int result = device_of(handle, &device);
    if (!result) snprintf(text, size, "%s", device.name);
    return result;
}
int nvmlDeviceGetMemoryInfo(void *handle, unsigned long long *total_free_used) {
    Device device;
    int result = device_of(handle, &device);
    if (!result) {
        total_free_used[0] = device.total;
        total_free_used[1] = device.total - device.used;
        total_free_used[2] = device.used;
    }
    return result;
}
int nvmlDeviceGetUtilizationRates(void *handle, unsigned int *gpu_memory) {
    Device device;
    int result = device_of(handle, &device);
    if (!result && !is_whole(&device)) return NOT_SUPPORTED;
    gpu_memory[0] = gpu_memory[1] = device.utilisation;
    return result;
}
int nvmlDeviceGetClockInfo(void *handle, int kind, unsigned int *clock) {
    Device device;
    int result = device_of(handle, &device);
    if (!result && !is_whole(&device)) return NOT_SUPPORTED;
    *clock = device.clock;
    return result;
}
int nvmlDeviceGetCurrentClocksThrottleReasons(void *handle, unsigned long long *reasons) {
    Device device;
    int result = device_of(handle, &device);
    if (!result && !is_whole(&device)) return NOT_SUPPORTED;
    *reasons = device.reasons;
    return result;
}
typedef struct { unsigned int pid; unsigned long long used; unsigned int instance, compute; } Process;
int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned int *count, Process *processes) {
    Device device;
    int result = device_of(handle, &device);
    unsigned int room = *count;
    if (result) return result;
    *count = device.pid != 0;
    if (*count > room) return TOO_SMALL;
    if (*count) processes[0] = (Process){device.pid, device.used, 0, 0};
    return OK;
}
static int parts_of(void *handle, char uuids[MOST][96]) {
    Device devices[MOST];
    int count = load(devices), found = 0;
    for (int i = 0; i < count; i++)
        if (!strcmp(devices[i].parent, known[(long)handle - 1])) strcpy(uuids[found++], devices[i].uuid);
    return found;
}
int nvmlDeviceGetMigMode(void *handle, unsigned int *current, unsigned int *pending) {
    char uuids[MOST][96];
    *current = *pending = parts_of(handle, uuids) > 0;
    return OK;
}
int nvmlDeviceGetMaxMigDeviceCount(void *handle, unsigned int *count) {
    *count = 7;
    return OK;
}
int nvmlDeviceGetMigDeviceHandleByIndex(void *handle, unsigned int index, void **part) {
    char uuids[MOST][96];
    if ((int)index >= parts_of(handle, uuids)) return NOT_FOUND;
    *part = handle_of(uuids[index]);
    return OK;
}
