package limits

import (
	"errors"
	"math/big"
	"strconv"
	"strings"
)

// errNoQuantity is of text that Kubernetes would not take for a quantity either.
var errNoQuantity = errors.New("not a quantity, such as 10M, 1500k or 1Gi")

// suffixes of a quantity, as base and exponent (k8s.io/apimachinery,
// pkg/api/resource, "QuantityFormat").
var suffixes = map[string]struct{ base, exponent int64 }{
	"n": {10, -9}, "u": {10, -6}, "m": {10, -3}, "": {10, 0}, "k": {10, 3}, "M": {10, 6}, "G": {10, 9}, "T": {10, 12}, "P": {10, 15}, "E": {10, 18},
	"Ki": {2, 10}, "Mi": {2, 20}, "Gi": {2, 30}, "Ti": {2, 40}, "Pi": {2, 50}, "Ei": {2, 60},
}

// maxExponent is where exponents are cut off, as 1e999999999 would take all
// memory: what is that far away from 1 is neither a rate nor a burst.
const maxExponent = 99

// maxLength is that of a quantity, bytes: an annotation has room for 256 KiB, and to
// compute with so many digits takes a second.
const maxLength = 64

// parseQuantity reads a Kubernetes quantity, exactly, and rounds it up to a whole
// number, as Quantity.Value does. It is here and not that package's, because a
// pure package depends on nobody.
func parseQuantity(s string) (*big.Int, error) {
	if len(s) > maxLength {
		return nil, errNoQuantity
	}
	number, suffix := s, ""
	if i := strings.IndexFunc(s, func(r rune) bool { return !strings.ContainsRune("+-.0123456789", r) }); i >= 0 {
		number, suffix = s[:i], s[i:]
	}
	scale, ok := suffixes[suffix]
	if !ok {
		exponent, ok := strings.CutPrefix(strings.Replace(suffix, "E", "e", 1), "e")
		n, err := strconv.ParseInt(exponent, 10, 64)
		if !ok || err != nil {
			return nil, errNoQuantity
		}
		scale.base, scale.exponent = 10, min(max(n, -maxExponent), maxExponent)
	}
	value, ok := parseNumber(number)
	if !ok {
		return nil, errNoQuantity
	}
	factor := new(big.Int).Exp(big.NewInt(scale.base), big.NewInt(max(scale.exponent, -scale.exponent)), nil)
	if scale.exponent < 0 {
		value.Quo(value, new(big.Rat).SetInt(factor))
	} else {
		value.Mul(value, new(big.Rat).SetInt(factor))
	}
	return roundUp(value), nil
}

// parseNumber reads an optional sign and digits around an optional point.
func parseNumber(s string) (*big.Rat, bool) {
	digits := strings.TrimPrefix(strings.TrimPrefix(s, "-"), "+")
	if len(s)-len(digits) > 1 || strings.ContainsAny(digits, "+-") || strings.Count(digits, ".") > 1 || strings.Trim(digits, ".") == "" {
		return nil, false
	}
	return new(big.Rat).SetString(s)
}

// roundUp rounds away from zero: what is a little is not nothing.
func roundUp(r *big.Rat) *big.Int {
	q, rest := new(big.Int).QuoRem(r.Num(), r.Denom(), new(big.Int))
	return q.Add(q, big.NewInt(int64(rest.Sign())))
}
