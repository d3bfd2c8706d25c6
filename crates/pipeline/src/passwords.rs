//! Hides passwords in texts that people and programs read later: messages, records, configurations.

/// What replaces a password.
const HIDDEN: &str = "...";
/// The placeholder for a password in messages and documents.
const PLACEHOLDER: &str = "PASSWORD";

/// The parameter of a URL of PostgreSQL that holds a password.
const PARAMETER: &str = "password=";

/// Replaces the passwords of all URLs in a text by `...`. In `postgres://user:password@host/name`, the password is the part between
/// the user and the last `@`; it may also be the value of a parameter `password`. Because a password that is not encoded may contain
/// blanks and quotation marks, what follows `postgres://` is hidden up to the last `@` before the next such URL or the end of the line, and
/// what follows `password=` up to the next `&`; other URLs end with the word. Text in which passwords are hidden stays as it is.
pub fn hide_passwords(text: &str) -> String {
    text.split_inclusive('\n').map(hide_in_line).collect()
}

fn hide_in_line(line: &str) -> String {
    let mut shown = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        let of_postgres = before.ends_with("postgres://") || before.ends_with("postgresql://");
        let end = if of_postgres { end_of_postgres_url(after) } else { end_of_word(after) };
        let (url, further) = after.split_at(end);
        shown.push_str(before);
        shown.push_str(&if of_postgres { hide_user(&hide_parameters(url)) } else { hide_user(url) });
        rest = further;
    }
    shown.push_str(rest);
    shown
}

/// Where the text ends that may belong to a URL of PostgreSQL: at the next one.
fn end_of_postgres_url(after: &str) -> usize {
    ["postgres://", "postgresql://"].iter().filter_map(|next| after.find(next)).min().unwrap_or(after.len())
}

fn end_of_word(after: &str) -> usize {
    after.find(|c: char| c.is_whitespace() || "\"'`".contains(c)).unwrap_or(after.len())
}

fn hide_user(url: &str) -> String {
    match url.rsplit_once('@').and_then(|(user, host)| Some((user.split_once(':')?, host))) {
        // After such a parameter, an `@` belongs to the text after the URL.
        Some(((name, password), _))
            if is_hidden(password) || name.contains(PARAMETER) || password.contains(PARAMETER) =>
        {
            url.to_owned()
        }
        Some(((name, _), host)) => format!("{name}:{HIDDEN}@{host}"),
        None => url.to_owned(),
    }
}

/// Whether a text begins with something that stands for a password.
fn is_hidden(text: &str) -> bool {
    [HIDDEN, PLACEHOLDER]
        .iter()
        .any(|own| text.strip_prefix(own).is_some_and(|rest| rest.is_empty() || rest.starts_with('@')))
}

fn hide_parameters(url: &str) -> String {
    let mut parts = url.split(PARAMETER);
    let mut shown = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        shown.push_str(PARAMETER);
        if part.starts_with(HIDDEN) {
            shown.push_str(part);
            continue;
        }
        shown.push_str(HIDDEN);
        shown.push_str(&part[part.find(['&', '\n']).unwrap_or(part.len())..]);
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_in_urls_are_hidden_wherever_they_occur() {
        for (text, shown) in [
            ("postgres://u:secret@h:5432/d", "postgres://u:...@h:5432/d"),
            ("postgresql://u:se:cr@et/x?y@h/d?sslmode=require", "postgresql://u:...@h/d?sslmode=require"),
            (
                "postgres://h/d?user=u&password=secret&sslmode=require",
                "postgres://h/d?user=u&password=...&sslmode=require",
            ),
            ("postgres://h/d?password=secret", "postgres://h/d?password=..."),
            ("postgres://u@h/d", "postgres://u@h/d"),
            ("--set serve.stroe=postgres://u:s@h/d and https://a:b@c", "--set serve.stroe=postgres://u:...@c"),
            ("https://a:b@c 'https://d/e@f' at 10:00@home", "https://a:...@c 'https://d/e@f' at 10:00@home"),
            ("store = \"postgres://u:s@h/d\"\nname = \"a@b\"", "store = \"postgres://u:...@h/d\"\nname = \"a@b\""),
            ("postgres://u:a'b\"c`d e://f@g@h/d", "postgres://u:...@h/d"),
            ("postgres://u:\"@h/d and postgresql://v:'@i/d", "postgres://u:...@h/d and postgresql://v:...@i/d"),
            ("postgres://u@h/d, not postgres://v:w@i/d", "postgres://u@h/d, not postgres://v:...@i/d"),
            ("postgres://h:5432/d is not mine@home", "postgres://h:...@home"),
            ("postgres://h/d?password=a'b \"c&user=u&password=d", "postgres://h/d?password=...&user=u&password=..."),
            ("postgres://u/v:w@h/d", "postgres://u/v:...@h/d"),
            ("write `postgres://USER:PASSWORD@HOST/DATABASE`", "write `postgres://USER:PASSWORD@HOST/DATABASE`"),
            ("no address: a:b@c", "no address: a:b@c"),
            ("https://host/path", "https://host/path"),
        ] {
            assert_eq!(hide_passwords(text), shown);
        }
    }

    #[test]
    fn what_follows_a_hidden_password_is_not_hidden() {
        for url in [
            "postgres://u:a'b c@h/d",
            "postgres://h/d?password=a b",
            "postgres://h:5/d?user=u&password=p@s",
            "https://a:b@c",
        ] {
            let message = format!(
                "`--set serve.store={}`: failed; mail me@home, or write postgres://USER:PASSWORD@HOST",
                hide_passwords(url)
            );
            assert_eq!(hide_passwords(&message), message);
            assert!(!message.contains(":a") && !message.contains("p@s") && !message.contains("a b"), "{message}");
        }
    }
}
