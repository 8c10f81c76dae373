package pod

func newEngine(*supervisor) (engine, error) { return nil, nil }
