package limits

import "fmt"

// ParseRate reads a rate as the annotations have it: a quantity, bits per second,
// [MinRate] to [MaxRate].
func ParseRate(text string) (uint64, error) {
	rate, err := within(text, int64(MinRate), int64(MaxRate))
	if err != nil {
		return 0, fmt.Errorf("%w bits per second (1k to 1P)", err)
	}
	return rate, nil
}
