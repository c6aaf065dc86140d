// Fills the chart's templates as Helm's engine does, and compares with files
// that were rendered. Usage: chart VALUES TEMPLATES RENDERED NAME...
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/template"
)

func main() {
	values, err := readValues(os.Args[1])
	check(err)
	differing := 0
	for _, name := range os.Args[4:] {
		parsed, err := template.ParseFiles(filepath.Join(os.Args[2], name))
		check(err)
		var filled bytes.Buffer
		check(parsed.Option("missingkey=error").Execute(&filled, map[string]any{"Values": values}))
		rendered, err := os.ReadFile(filepath.Join(os.Args[3], name))
		check(err)
		// A control line at the very start or end leaves its newline.
		if strings.TrimSpace(filled.String()) != strings.TrimSpace(string(rendered)) {
			fmt.Println(name, "differs:", filled.String())
			differing++
		}
	}
	os.Exit(differing)
}

// One key and one JSON value a line.
func readValues(path string) (map[string]any, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	values := map[string]any{}
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		key, text, found := strings.Cut(lines.Text(), ": ")
		if !found || strings.HasPrefix(key, "#") {
			continue
		}
		var value any
		if err := json.Unmarshal([]byte(text), &value); err != nil {
			return nil, err
		}
		values[key] = value
	}
	return values, lines.Err()
}

func check(err error) {
	if err != nil {
		fmt.Println(err)
		os.Exit(100)
	}
}
