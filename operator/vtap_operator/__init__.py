"""The operator: never in the data path; taps keep running while it is down."""
