// SPDX-License-Identifier: GPL-2.0-only
/*
 * TLS_ERROR, where the module and not the daemon has found why a call fails.
 */
#include <linux/module.h>
#include <linux/slab.h>

#include "ssa.h"

static DEFINE_SPINLOCK(ssa_complaint_lock);

/*
 * Say for TLS_ERROR why a call fails; without a format: nothing, the daemon's word counts.  It
 * needs no memory to fail.
 */
void ssa_complain(struct ssa_sock *s, const char *format, ...)
{
	char *complaint = NULL;
	va_list arguments;

	if (format) {
		va_start(arguments, format);
		complaint = kvasprintf(GFP_KERNEL_ACCOUNT, format, arguments);
		va_end(arguments);
	}
	spin_lock(&ssa_complaint_lock);
	swap(complaint, s->complaint);
	spin_unlock(&ssa_complaint_lock);
	kfree(complaint);
}

/* A copy of what was said, to be freed; NULL: nothing was, or there is no memory for it. */
char *ssa_complaint(struct ssa_sock *s)
{
	char *copy = NULL;

	spin_lock(&ssa_complaint_lock);
	if (s->complaint)
		copy = kstrdup(s->complaint, GFP_ATOMIC);
	spin_unlock(&ssa_complaint_lock);
	return copy;
}
