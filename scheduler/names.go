package scheduler

import "strings"

// compareNames orders names with numbers in them as people do: n2 before n10.
func compareNames(a, b string) int {
	for a != "" && b != "" {
		ad, bd := digits(a), digits(b)
		if ad > 0 && bd > 0 {
			x, y := strings.TrimLeft(a[:ad], "0"), strings.TrimLeft(b[:bd], "0")
			if len(x) != len(y) {
				return len(x) - len(y)
			}
			if c := strings.Compare(x, y); c != 0 {
				return c
			}
			a, b = a[ad:], b[bd:]
			continue
		}
		if a[0] != b[0] {
			return int(a[0]) - int(b[0])
		}
		a, b = a[1:], b[1:]
	}
	return len(a) - len(b)
}

func digits(s string) int {
	n := 0
	for n < len(s) && s[n] >= '0' && s[n] <= '9' {
		n++
	}
	return n
}
