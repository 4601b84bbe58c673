/* Which layers of a model go to an accelerator, and that they get there. */
#ifndef SQ_OFFLOAD_H
#define SQ_OFFLOAD_H

#include "model.h"

/* Sets n_cpu_layers and `offload` of a model that is loaded, as `options` (may be NULL) say. With "auto" a
 * device that cannot be used is no failure, but a reason in offload.absent. */
sq_status sq_offload_open(sq_model *model, const sq_model_options *options, sq_error *error);
void sq_offload_close(sq_model *model);

#endif
