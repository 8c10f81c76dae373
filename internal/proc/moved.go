package proc

// VDSOMoved tells that the caller's own injected calls moved the vdso, where
// the instruction is that single system calls are stepped over: it is searched
// again when it is needed next.
func (f *Frozen) VDSOMoved() { f.gadget = 0 }
