"""What ``losa-cache eval`` tells beyond means: tables and charts of predictions, intervals, and the folder of them."""
