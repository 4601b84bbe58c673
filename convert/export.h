/* What the library sq_fit shows to Python. */
#ifndef SQ_CONVERT_EXPORT_H
#define SQ_CONVERT_EXPORT_H

#if defined(__GNUC__)
#define SQ_FIT_API __attribute__((visibility("default")))
#else
#define SQ_FIT_API
#endif

#endif
