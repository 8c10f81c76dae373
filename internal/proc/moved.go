package proc

// VDSOMoved tells that the caller's own injected calls moved the vdso, where
// the instruction is that single system calls are stepped over: it is searched
// again.
//
// Expected errors: ErrUnsupported when there is none; those of reading /proc.
func (f *Frozen) VDSOMoved() error {
	maps, err := Maps(f.PID)
	if err != nil {
		return err
	}
	f.gadget = 0
	return f.findGadget(maps)
}
