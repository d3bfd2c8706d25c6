//! Dates as the review files write them.

/// 2015-01-01, the day the shop opened, in days since 1970-01-01.
const OPENING: i64 = 16_436;

/// Unix seconds of midnight UTC of a day since opening.
pub(crate) fn unix(day: u32) -> i64 {
    (OPENING + i64::from(day)) * 86_400
}

/// A day since opening as `MM D, YYYY` (days-to-civil arithmetic of the Gregorian calendar).
pub(crate) fn review_time(day: u32) -> String {
    let z = OPENING + i64::from(day) + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{month:02} {day}, {year}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_become_dates() {
        assert_eq!(review_time(0), "01 1, 2015");
        assert_eq!(review_time(31 + 28 + 365), "02 29, 2016");
        assert_eq!(unix(0), 1_420_070_400);
    }
}
