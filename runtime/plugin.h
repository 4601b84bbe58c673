/* The plugin for accelerators, a shared library of its own (device.h): it is there, or it is not. */
#ifndef SQ_PLUGIN_H
#define SQ_PLUGIN_H

#include "device.h"

/* Loads libsq_cuda.so from beside this library, or from where the system has libraries. `api` lives for ever.
 * SQ_ERROR_UNSUPPORTED where it is missing, needs what is missing, or is of another version. */
sq_status sq_plugin_load(const sq_device_api **api, sq_error *error);

#endif
