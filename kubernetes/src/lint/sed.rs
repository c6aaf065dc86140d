//! As much of sed as boot scripts use on the allocator's file: `s` commands
//! over lines, with literal text, `.`, classes, anchors and repetition.

/// Longer text is nobody's allocator file.
const MOST_TEXT: usize = 64 << 10;
/// Steps of matching for one script: patterns may backtrack for very long.
const MOST_STEPS: u32 = 1 << 20;

/// Applies a script to text. `None` when it uses more of sed than this knows,
/// or more time or room than an edit takes.
pub(super) fn apply(script: &str, extended: bool, text: &str) -> Option<String> {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let mut rest = script.trim();
    let mut steps = MOST_STEPS;
    while !rest.is_empty() {
        let (substitute, behind) = Substitute::parse(rest, extended)?;
        let mut room = MOST_TEXT;
        for line in &mut lines {
            *line = substitute.line(line, &mut steps)?;
            room = room.checked_sub(line.len())?;
        }
        rest = behind.trim_start_matches([';', ' ', '\n']);
    }
    let end = if text.ends_with('\n') { "\n" } else { "" };
    Some(lines.join("\n") + end)
}

struct Substitute {
    pattern: Vec<Piece>,
    replacement: String,
    global: bool,
}

/// One character's worth of a pattern, and how often it may be there.
struct Piece {
    what: What,
    least: usize,
    most: usize,
}

enum What {
    Start,
    End,
    Any,
    Literal(char),
    Class { ranges: Vec<(char, char)>, negated: bool },
}

impl Substitute {
    fn parse(script: &str, extended: bool) -> Option<(Substitute, &str)> {
        let body = script.strip_prefix('s')?;
        let delimiter = body.chars().next().filter(|c| c.is_ascii_punctuation() && *c != '\\')?;
        let (pattern, rest) = until(&body[delimiter.len_utf8()..], delimiter)?;
        let (replacement, rest) = until(rest, delimiter)?;
        let flags = rest.find([';', ' ', '\n']).map_or(rest, |end| &rest[..end]);
        if !flags.chars().all(|flag| flag == 'g') || replacement.contains(['&', '\\']) {
            return None;
        }
        let substitute =
            Substitute { pattern: pieces(&pattern, extended)?, replacement, global: flags.contains('g') };
        Some((substitute, &rest[flags.len()..]))
    }

    fn line(&self, line: &str, steps: &mut u32) -> Option<String> {
        let characters: Vec<char> = line.chars().collect();
        let (mut out, mut at) = (String::new(), 0);
        let mut replacing = true;
        while at <= characters.len() {
            let end = if replacing { end_of_match(&self.pattern, &characters, at, steps)? } else { None };
            match end {
                Some(end) => {
                    out.push_str(&self.replacement);
                    if out.len() > MOST_TEXT {
                        return None;
                    }
                    replacing = self.global;
                    if end == at {
                        out.extend(characters.get(at));
                        at += 1;
                    } else {
                        at = end;
                    }
                    if at == characters.len() {
                        break;
                    }
                }
                None => {
                    out.extend(characters.get(at));
                    at += 1;
                }
            }
        }
        Some(out)
    }
}

/// Text up to an unescaped delimiter, and what is behind it.
fn until(text: &str, delimiter: char) -> Option<(String, &str)> {
    let mut out = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        if character == delimiter {
            return Some((out, &text[at + delimiter.len_utf8()..]));
        }
        if character == '\\' {
            let (_, next) = characters.next()?;
            if next != delimiter {
                out.push('\\');
            }
            out.push(next);
        } else {
            out.push(character);
        }
    }
    None
}

fn pieces(pattern: &str, extended: bool) -> Option<Vec<Piece>> {
    let mut pieces: Vec<Piece> = Vec::new();
    let mut characters = pattern.chars().peekable();
    while let Some(character) = characters.next() {
        let what = match character {
            '^' if pieces.is_empty() => What::Start,
            '$' if characters.peek().is_none() => What::End,
            '.' => What::Any,
            '[' => class(&mut characters)?,
            '*' => {
                let last = pieces.last_mut()?;
                (last.least, last.most) = (0, usize::MAX);
                continue;
            }
            '+' if extended => {
                pieces.last_mut()?.most = usize::MAX;
                continue;
            }
            '?' if extended => {
                pieces.last_mut()?.least = 0;
                continue;
            }
            '(' | ')' | '|' | '{' | '}' if extended => return None,
            '\\' => match characters.next()? {
                's' => What::Class { ranges: vec![(' ', ' '), ('\t', '\t')], negated: false },
                '+' if !extended => {
                    pieces.last_mut()?.most = usize::MAX;
                    continue;
                }
                punctuation if punctuation.is_ascii_punctuation() && !"(){}|?<>`'".contains(punctuation) => {
                    What::Literal(punctuation)
                }
                _ => return None,
            },
            literal => What::Literal(literal),
        };
        pieces.push(Piece { what, least: 1, most: 1 });
    }
    Some(pieces)
}

fn class(characters: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<What> {
    let negated = characters.next_if_eq(&'^').is_some();
    let mut ranges = Vec::new();
    loop {
        match characters.next()? {
            ']' if !ranges.is_empty() => return Some(What::Class { ranges, negated }),
            '[' => return None,
            first => {
                let mut last = first;
                if characters.peek() == Some(&'-') {
                    characters.next();
                    last = characters.next().filter(|last| *last != ']')?;
                }
                ranges.push((first, last));
            }
        }
    }
}

/// The longest greedy match that starts at `at`: where it ends, if there is
/// one. `None` when the steps run out.
fn end_of_match(pieces: &[Piece], text: &[char], at: usize, steps: &mut u32) -> Option<Option<usize>> {
    *steps = steps.checked_sub(1)?;
    let Some((piece, rest)) = pieces.split_first() else { return Some(Some(at)) };
    let fits = |character: &&char| match &piece.what {
        What::Any => true,
        What::Literal(literal) => *character == literal,
        What::Class { ranges, negated } => {
            ranges.iter().any(|(first, last)| (first..=last).contains(character)) != *negated
        }
        What::Start | What::End => false,
    };
    let (least, most) = match piece.what {
        What::Start if at == 0 => (0, 0),
        What::End if at == text.len() => (0, 0),
        What::Start | What::End => return Some(None),
        _ => (piece.least, text[at..].iter().take(piece.most).take_while(fits).count()),
    };
    for count in (least..=most).rev() {
        if let Some(end) = end_of_match(rest, text, at + count, steps)? {
            return Some(Some(end));
        }
    }
    Some(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_edits_do_what_sed_does() {
        let file = "# cpu_pool: 2\nmemory_mib: 512\ncpu_count: 2\n";
        for (script, extended, expected) in [
            ("s/memory_mib:.*/memory_mib: 768/", false, "# cpu_pool: 2\nmemory_mib: 768\ncpu_count: 2\n"),
            ("s|^cpu_count: [0-9]*$|cpu_count: 4|g", false, "# cpu_pool: 2\nmemory_mib: 512\ncpu_count: 4\n"),
            ("s/^cpu_pool:.*/cpu_pool: 3/", false, file),
            ("s/[0-9]+/7/; s/cpu_c/CPU_C/", true, "# cpu_pool: 7\nmemory_mib: 7\nCPU_C\u{6f}unt: 7\n"),
            ("s/u/U/g", false, "# cpU_pool: 2\nmemory_mib: 512\ncpU_coUnt: 2\n"),
            ("s/\\s*$//", false, file),
        ] {
            assert_eq!(apply(script, extended, file).as_deref(), Some(expected), "{script}");
        }
        // Too long, in time and in room.
        let long = "a".repeat(5000);
        assert_eq!(apply("s/.*.*.*.*.*b//", false, &long), None);
        assert_eq!(apply(&"s/a/aaaaaaaa/g;".repeat(20), false, "a"), None);
        for script in ["s/\\(a\\)/\\1/", "/x/d", "s/a/b", "y/a/b/", "s/a/&b/"] {
            assert_eq!(apply(script, false, file), None, "{script}");
        }
    }
}
