"""What is wrong with a data set, found before a training: one look at its files, checks, a report."""
