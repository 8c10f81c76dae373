// Package nearest finds what somebody meant who mistyped a word.
package nearest

import "strings"

// Word returns the word that somebody who wrote this one most likely meant:
// one that begins with it, or that differs in few letters; "" when none does.
func Word(wrote string, words []string) string {
	if wrote == "" {
		return ""
	}
	best, distance := "", 2 // one letter in short words
	if len(wrote) > 3 {
		distance = max(2, len(wrote)/3) + 1
	}
	for _, w := range words {
		d := edits(wrote, w)
		if len(wrote) > 2 && strings.HasPrefix(w, wrote) {
			d = min(d, 1)
		}
		if d < distance {
			best, distance = w, d
		}
	}
	return best
}

// edits is Levenshtein's distance: the least number of letters inserted,
// removed or replaced between a and b.
func edits(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
