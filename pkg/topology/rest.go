package topology

import (
	"encoding/json"
	"reflect"
	"strings"
)

// Rest is what a record has that this release does not know, as a newer one wrote it: members of a JSON
// object in the order of their names, `"A":1,"B":[2]`. It is written as it was read, so that whoever reads
// a record, changes what it knows, and writes it, erases nothing of others'. docs/design.md has the rules.
type Rest string

// With is the rest with the members of another one, which are taken where both have one of a name.
func (r Rest) With(other Rest) Rest {
	if r == "" || other == "" {
		return r + other
	}
	members := map[string]json.RawMessage{}
	for _, each := range []Rest{r, other} {
		_ = json.Unmarshal([]byte("{"+each+"}"), &members) // it was read as JSON
	}
	return restOf(members)
}

// restOf is the rest with these members. Its form is the one that they have when they were written.
func restOf(members map[string]json.RawMessage) Rest {
	data, err := json.Marshal(members)
	if err != nil || len(members) == 0 {
		return "" // they were read as JSON
	}
	return Rest(data[1 : len(data)-1])
}

// written is the JSON of a record, given without its rest.
func (r Rest) written(record any) ([]byte, error) {
	data, err := json.Marshal(record)
	if err != nil || r == "" {
		return data, err
	}
	return append(append(append(data[:len(data)-1], ','), r...), '}'), nil
}

// fields are the names that the members of a record have in JSON.
type fields map[string]bool

func fieldsOf[T any]() fields {
	known := fields{}
	for i := range reflect.TypeFor[T]().NumField() {
		name, _, _ := strings.Cut(reflect.TypeFor[T]().Field(i).Tag.Get("json"), ",")
		known[name] = name != "-"
	}
	return known
}

// knows reports whether a member of that name is read into a field. Capitals do not count, as they do not
// for encoding/json.
func (f fields) knows(name string) bool {
	if f[name] {
		return true
	}
	for field, is := range f {
		if is && strings.EqualFold(field, name) {
			return true
		}
	}
	return false
}

// rest is what the fields do not have of data, which was read as JSON.
func (f fields) rest(data []byte) Rest {
	i := blanks(data, 0)
	if data[i] != '{' {
		return "" // null, which is read as nothing
	}
	var members map[string]json.RawMessage
	for i = blanks(data, i+1); data[i] == '"'; i = blanks(data, i) {
		end := afterString(data, i)
		value := blanks(data, end) + 1 // after the colon
		next := afterValue(data, value)
		// Nearly always the name is a field's, as it stands.
		if !f[string(data[i+1:end-1])] {
			var name string
			_ = json.Unmarshal(data[i:end], &name) // it was read
			if !f.knows(name) {
				if members == nil {
					members = map[string]json.RawMessage{}
				}
				members[name] = data[value:next]
			}
		}
		if i = next; data[i] == ',' {
			i++
		}
	}
	return restOf(members)
}

// blanks is where the blanks from i on end.
func blanks(data []byte, i int) int {
	for data[i] == ' ' || data[i] == '\t' || data[i] == '\n' || data[i] == '\r' {
		i++
	}
	return i
}

// afterString is where the string ends whose first quote is at i.
func afterString(data []byte, i int) int {
	for i++; data[i] != '"'; i++ {
		if data[i] == '\\' {
			i++
		}
	}
	return i + 1
}

// afterValue is the comma or brace after the value of a member that begins at i.
func afterValue(data []byte, i int) int {
	for depth := 0; ; i++ {
		switch data[i] {
		case '"':
			i = afterString(data, i) - 1
		case '{', '[':
			depth++
		case ',':
			if depth == 0 {
				return i
			}
		case '}', ']':
			if depth == 0 {
				return i
			}
			depth--
		}
	}
}
