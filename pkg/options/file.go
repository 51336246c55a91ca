package options

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/pflag"
	"sigs.k8s.io/yaml"
)

// file is a configuration file as read.
type file struct {
	path   string
	values map[string]any
}

// readFile reads a configuration file: one YAML mapping of flag names to
// scalars or lists of scalars. A key that stands twice is an error.
func readFile(path string) (file, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return file{}, fmt.Errorf("configuration file: %w", err)
	}
	asJSON, err := yaml.YAMLToJSONStrict(data)
	if err != nil {
		return file{}, fmt.Errorf("configuration file %s is not valid YAML: %w", path, err)
	}
	// Numbers stay as they were written: 10000000 is not to become 1e+07.
	dec := json.NewDecoder(bytes.NewReader(asJSON))
	dec.UseNumber()
	f := file{path: path}
	if err := dec.Decode(&f.values); err != nil {
		return file{}, fmt.Errorf("configuration file %s: it must be a mapping, one `flag-name: value` a line", path)
	}
	return f, nil
}

// apply sets the flags of fs that have a value in the file and none yet. All
// keys are checked before any flag is set.
func (f file) apply(fs *pflag.FlagSet, others []*pflag.FlagSet) error {
	names := known(fs, others)
	keys := make([]string, 0, len(f.values))
	for key := range f.values {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	for _, key := range keys {
		if !names[key] {
			return unknownKey(f.path, key, names)
		}
	}
	for _, key := range keys {
		flag := fs.Lookup(key)
		if flag == nil || flag.Changed {
			continue
		}
		if err := set(fs, flag, f.values[key]); err != nil {
			return fmt.Errorf("configuration file %s: %s: %w", f.path, key, err)
		}
	}
	return nil
}

// set gives flag a value that was decoded from the file.
func set(fs *pflag.FlagSet, flag *pflag.Flag, value any) error {
	if list, ok := value.([]any); ok {
		return setList(fs, flag, list)
	}
	text, err := scalar(flag, value)
	if err != nil {
		return err
	}
	if err := fs.Set(flag.Name, text); err != nil {
		return cause(err)
	}
	return nil
}

func setList(fs *pflag.FlagSet, flag *pflag.Flag, list []any) error {
	slice, ok := flag.Value.(pflag.SliceValue)
	if !ok {
		return fmt.Errorf("takes one value, not a list")
	}
	items := make([]string, 0, len(list))
	for _, v := range list {
		text, err := scalar(flag, v)
		if err != nil {
			return err
		}
		items = append(items, text)
	}
	var line strings.Builder
	w := csv.NewWriter(&line)
	if err := w.Write(items); err != nil {
		return err
	}
	w.Flush()
	// Through Set, so that pflag knows that the flag was set; then whole, since
	// not every list flag splits at commas.
	if err := fs.Set(flag.Name, strings.TrimSuffix(line.String(), "\n")); err != nil {
		return cause(err)
	}
	return slice.Replace(items)
}

// scalar is the text of one value. YAML has read it by then: a password 0123
// has become a number, a name yes has become true. For flags that take any
// text that is refused rather than guessed.
func scalar(flag *pflag.Flag, value any) (string, error) {
	takesText := strings.HasPrefix(flag.Value.Type(), "string")
	switch v := value.(type) {
	case string:
		return v, nil
	case bool:
		if takesText {
			return "", fmt.Errorf("is read as true or false; put the text in quotes")
		}
		return fmt.Sprint(v), nil
	case json.Number:
		if takesText {
			return "", fmt.Errorf("is read as a number; put the text in quotes")
		}
		return v.String(), nil
	case nil:
		return "", fmt.Errorf("has no value; write one, \"\" for empty, or drop the line")
	}
	return "", fmt.Errorf("takes a single value or a list, not a mapping")
}
