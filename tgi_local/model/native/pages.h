/* Memory straight from the system, zeroed, in large pages where it has them: weights and cache are read in long strides,
 * and with small pages a good part of the time would go into finding them. */
#ifndef TGI_PAGES_H
#define TGI_PAGES_H

#include <stddef.h>

/* NULL when there is no memory. Page-aligned. */
void *pages_create(size_t size);
void pages_free(void *memory, size_t size);
/* Give back what the C library keeps of freed memory: a packed model's own weights, gigabytes of them. */
void pages_return_freed(void);

#endif
