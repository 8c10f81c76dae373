# Short names for the tasks of ./run, which works without make.
.PHONY: build test check lint fuzz demo bench bench-engine bench-detect deps clean

build test check lint fuzz demo bench bench-engine bench-detect deps clean:
	./run $@
