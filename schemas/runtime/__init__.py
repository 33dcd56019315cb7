"""What every long-running part needs: logs, Kafka logins, metrics, health, stop signals. Libraries are imported inside functions.

May be imported by every part; imports schemas only.
"""
