//go:build race

package tenant

const raceEnabled = true
