package topology

import (
	"bytes"
	"encoding/json"
	"io"
	"maps"
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

// read reads JSON into a record of these fields, and is what they do not have of it.
func (f fields) read(data []byte, record any) (Rest, error) {
	// Nearly always that is nothing.
	strict := json.NewDecoder(bytes.NewReader(data))
	strict.DisallowUnknownFields()
	if strict.Decode(record) == nil {
		if _, err := strict.Token(); err == io.EOF {
			return "", nil
		}
	}
	if err := json.Unmarshal(data, record); err != nil {
		return "", err
	}
	var members map[string]json.RawMessage
	_ = json.Unmarshal(data, &members) // it was read
	maps.DeleteFunc(members, func(name string, _ json.RawMessage) bool { return f.knows(name) })
	return restOf(members), nil
}
