#include "plugin.h"

#include <dlfcn.h>

#include "status.h"

static const char file_name[] = "libsq_cuda.so";

sq_status sq_plugin_load(const sq_device_api **api, sq_error *error) {
    *api = NULL;
    void *library =
        dlopen(file_name, RTLD_NOW | RTLD_LOCAL); /* stays: a driver is not meant to be unloaded */
    if (!library)
        return sq_fail(
            error, SQ_ERROR_UNSUPPORTED,
            "the plugin for GPUs cannot be loaded (%s); build it with CUDA's nvcc, or run on the CPU",
            dlerror());
    sq_device_api_get_function get;
    *(void **)&get = dlsym(library, "sq_device_api_get"); /* as POSIX has it for functions */
    if (!get)
        return sq_fail(error, SQ_ERROR_UNSUPPORTED,
                       "%s has no sq_device_api_get: it is no plugin of this library; build it again",
                       file_name);
    const sq_device_api *found = get();
    if (found->version != SQ_DEVICE_VERSION)
        return sq_fail(error, SQ_ERROR_UNSUPPORTED,
                       "%s: expected version %d, found %u; build library and plugin from the same sources",
                       file_name, SQ_DEVICE_VERSION, found->version);
    *api = found;
    return SQ_OK;
}
