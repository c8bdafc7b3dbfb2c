//! Steps of a script by their index, as the command line writes them: `3,7,12-20`.

use std::{fmt, str::FromStr};

/// Sorted, each once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Indexes(Vec<usize>);

/// No script has so many steps.
const INDEX_MAX: usize = 1_000_000;

impl Indexes {
    /// Those.
    pub fn new(mut indexes: Vec<usize>) -> Self {
        indexes.sort_unstable();
        indexes.dedup();
        Self(indexes)
    }

    /// All, in order.
    pub fn into_vec(self) -> Vec<usize> {
        self.0
    }
}

impl fmt::Display for Indexes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        for (number, run) in self.0.chunk_by(|a, b| a + 1 == *b).enumerate() {
            let comma = if number > 0 { "," } else { "" };
            match run {
                [first, .., last] => write!(f, "{comma}{first}-{last}")?,
                _ => write!(f, "{comma}{}", run[0])?,
            }
        }
        Ok(())
    }
}

impl FromStr for Indexes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self(Vec::new()));
        }
        let number = |text: &str| match text.trim().parse::<usize>() {
            Ok(number) if number <= INDEX_MAX => Ok(number),
            _ => Err(format!("\"{text}\" is no index of a step; write 3,7,12-20 or none")),
        };
        let mut indexes = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(format!("\"{part}\" ends before it begins"));
            }
            indexes.extend(first..=last);
        }
        Ok(Self::new(indexes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_are_what_they_are_written_as() {
        let read = |text: &str| text.parse::<Indexes>().map(Indexes::into_vec);
        assert_eq!(read("3,7,12-15"), Ok(vec![3, 7, 12, 13, 14, 15]));
        assert_eq!(read("5,1-2,2"), Ok(vec![1, 2, 5]));
        assert_eq!(read("none"), Ok(vec![]));
        for text in ["3,7,12-20", "0", "none", "1-2"] {
            assert_eq!(text.parse::<Indexes>().unwrap().to_string(), text);
        }
        assert!(read("9-3").unwrap_err().contains("ends before it begins"));
        assert!(read("a").is_err() && read("").is_err() && read("0-99999999999").is_err());
    }
}
