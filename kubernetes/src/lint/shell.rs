//! As much of a shell as it takes to see what boot commands do.

/// Splits a script into statements: a line, joined with those that a trailing
/// backslash continues and with the body of its here-document. With the index
/// of each one's first line.
pub(super) fn statements(lines: &[&str]) -> Vec<(usize, String)> {
    let mut statements = Vec::new();
    let mut index = 0;
    while index < lines.len() {
        let start = index;
        let mut text = lines[index].to_owned();
        while text.ends_with('\\') && index + 1 < lines.len() {
            index += 1;
            text.pop();
            text.push_str(lines[index]);
        }
        if let Some(delimiter) = here_document(&text).map(|(delimiter, _)| delimiter.to_owned()) {
            while index + 1 < lines.len() {
                index += 1;
                text.push('\n');
                text.push_str(lines[index]);
                if lines[index].trim_start_matches('\t') == delimiter {
                    break;
                }
            }
        }
        index += 1;
        if !text.trim().is_empty() {
            statements.push((start, text));
        }
    }
    statements
}

/// The file that a statement writes by redirection or `tee`, and the text, if
/// that is certain.
pub(super) fn written_file(statement: &str) -> Option<(String, Option<String>)> {
    let head = statement.lines().next().unwrap_or_default();
    let commands = commands(head);
    let words: Vec<&String> = commands.iter().flatten().collect();
    let redirected = words.iter().position(|word| word.as_str() == ">").and_then(|at| words.get(at + 1));
    let teed = words
        .iter()
        .position(|word| word.as_str() == "tee")
        .and_then(|at| words[at + 1..].iter().find(|word| !word.starts_with('-')));
    let target = redirected.or(teed)?.to_string();
    let body = match here_document(head) {
        Some((_, tabs)) => Some(
            statement
                .lines()
                .skip(1)
                .take(statement.lines().count().saturating_sub(2))
                .map(|line| if tabs { line.trim_start_matches('\t') } else { line })
                .map(|line| format!("{line}\n"))
                .collect(),
        ),
        None => printed(commands.first()?),
    };
    Some((target, body.filter(|text: &String| !text.contains(['$', '`']))))
}

/// Commands of one line, as words. Redirections stay as words of their own.
pub(super) fn commands(line: &str) -> Vec<Vec<String>> {
    let mut commands = vec![Vec::new()];
    let mut word: Option<String> = None;
    let mut characters = line.chars().peekable();
    let push = |commands: &mut Vec<Vec<String>>, word: &mut Option<String>| {
        if let (Some(word), Some(command)) = (word.take(), commands.last_mut()) {
            command.push(word);
        }
    };
    while let Some(character) = characters.next() {
        match character {
            '\'' => {
                let text = word.get_or_insert_default();
                text.extend(characters.by_ref().take_while(|c| *c != '\''));
            }
            '"' => {
                let text = word.get_or_insert_default();
                while let Some(inner) = characters.next() {
                    match inner {
                        '"' => break,
                        '\\' if matches!(characters.peek(), Some('"' | '\\' | '$' | '`')) => {
                            text.extend(characters.next());
                        }
                        other => text.push(other),
                    }
                }
            }
            '\\' => word.get_or_insert_default().extend(characters.next()),
            '#' if word.is_none() => break,
            ' ' | '\t' | '\n' => push(&mut commands, &mut word),
            ';' | '&' | '|' => {
                push(&mut commands, &mut word);
                characters.next_if_eq(&character);
                commands.push(Vec::new());
            }
            '>' => {
                push(&mut commands, &mut word);
                let mark = if characters.next_if_eq(&'>').is_some() { ">>" } else { ">" };
                word = Some(mark.to_owned());
                push(&mut commands, &mut word);
            }
            other => word.get_or_insert_default().push(other),
        }
    }
    push(&mut commands, &mut word);
    commands.retain(|command| !command.is_empty());
    commands
}

/// A here-document's end word, and whether leading tabs are dropped.
fn here_document(line: &str) -> Option<(&str, bool)> {
    let behind = line.split_once("<<")?.1;
    if behind.starts_with('<') {
        return None;
    }
    let (behind, tabs) = behind.strip_prefix('-').map_or((behind, false), |rest| (rest, true));
    let behind = behind.trim_start().trim_start_matches(['\'', '"', '\\']);
    let end = behind.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(behind.len());
    (end > 0).then_some((&behind[..end], tabs))
}

/// What `echo` or `printf` with constant arguments prints.
fn printed(command: &[String]) -> Option<String> {
    let end = command.iter().position(|word| word == ">").unwrap_or(command.len());
    let arguments = &command[1..end];
    match command.first()?.as_str() {
        "printf" if arguments.len() == 1 => {
            let format = &arguments[0];
            (!format.contains('%')).then(|| unescaped(format))
        }
        "echo" => {
            let options =
                arguments.iter().take_while(|word| matches!(word.as_str(), "-e" | "-n" | "-en" | "-ne"));
            let options: Vec<&String> = options.collect();
            let text = arguments[options.len()..].join(" ");
            let text =
                if options.iter().any(|option| option.contains('e')) { unescaped(&text) } else { text };
            let end = if options.iter().any(|option| option.contains('n')) { "" } else { "\n" };
            Some(text + end)
        }
        _ => None,
    }
}

fn unescaped(text: &str) -> String {
    text.replace("\\n", "\n").replace("\\t", "\t")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_split_as_a_shell_splits_them() {
        let split = commands("dnf install -y x && sed -i \"s/a: .*/a: 'b'/\" /f; echo 'a b' >/o # no");
        let expected: Vec<Vec<&str>> = vec![
            vec!["dnf", "install", "-y", "x"],
            vec!["sed", "-i", "s/a: .*/a: 'b'/", "/f"],
            vec!["echo", "a b", ">", "/o"],
        ];
        assert_eq!(split, expected);
    }

    #[test]
    fn written_files_are_seen_with_their_text() {
        let script = ["cat > /a <<'EOF'", "x: 1", "EOF", "cat <<-E | tee /b", "\ty", "\tE", "ls \\", " -l"];
        let statements = statements(&script);
        assert_eq!(statements.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [0, 3, 6]);
        assert_eq!(written_file(&statements[0].1), Some(("/a".into(), Some("x: 1\n".into()))));
        assert_eq!(written_file(&statements[1].1), Some(("/b".into(), Some("y\n".into()))));
        assert_eq!(written_file(&statements[2].1), None);
        assert_eq!(
            written_file("printf '---\\na: 1\\n' > /c"),
            Some(("/c".into(), Some("---\na: 1\n".into())))
        );
        assert_eq!(written_file("echo \"a: $X\" > /c"), Some(("/c".into(), None)));
    }
}
