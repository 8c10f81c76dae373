package bench

import (
	"math"
	"slices"
)

// Sample sums up repeated measurements of one thing. All figures are in the
// unit of the values.
type Sample struct {
	N      int       `json:"n"`
	Median float64   `json:"median"`
	Min    float64   `json:"min"`
	Max    float64   `json:"max"`
	P90    float64   `json:"p90"`
	Values []float64 `json:"values"` // in the order in which they were taken
}

// Summarize makes a Sample of values, which it keeps. No values make the zero
// Sample.
func Summarize(values []float64) Sample {
	if len(values) == 0 {
		return Sample{}
	}
	sorted := slices.Sorted(slices.Values(values))
	return Sample{
		N: len(values), Median: quantile(sorted, 0.5), Min: sorted[0], Max: sorted[len(sorted)-1],
		P90: quantile(sorted, 0.9), Values: values,
	}
}

// quantile interpolates between the neighbours of position q in sorted, which
// is not empty.
func quantile(sorted []float64, q float64) float64 {
	at := q * float64(len(sorted)-1)
	low := int(math.Floor(at))
	high := min(low+1, len(sorted)-1)
	return sorted[low] + (at-float64(low))*(sorted[high]-sorted[low])
}

// Ratios divides pairwise: a[i] / b[i].
func Ratios(a, b []float64) []float64 {
	out := make([]float64, 0, min(len(a), len(b)))
	for i := range min(len(a), len(b)) {
		if b[i] != 0 {
			out = append(out, a[i]/b[i])
		}
	}
	return out
}
